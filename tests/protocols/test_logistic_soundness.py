"""The certified gap is never below the true one, which an independent solver knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.protocols import exact
from transferbench.protocols.logistic import Path, fit_path

ROUNDING = 1e-12
"""Of the minimum. The solver computes in float64: n losses, each to some 1e-16 of itself, and
residuals whose sums over the samples, 0 in the derivation of the bound, are left below 1e-11 n."""


@st.composite
def problems(draw):
    """Features of several scales, repeated and constant ones among them, and labels of each class.

    Whole numbers over a draw of noise: so few values that samples coincide and classes overlap or
    separate, and shrinking leads to a problem that can be read.
    """
    classes = draw(st.integers(2, 4))
    n, d = draw(st.integers(classes, 14)), draw(st.integers(1, 6))
    whole = st.integers(-3, 3)
    x = np.array(draw(st.lists(st.lists(whole, min_size=d, max_size=d), min_size=n, max_size=n)))
    noise = np.random.RandomState(draw(st.integers(0, 2**16))).randn(n, d)
    x = x + draw(st.sampled_from([0.0, 0.1, 1.0])) * noise
    scales = st.sampled_from([1e-3, 1.0, 1.0, 1.0, 30.0])
    x = x * draw(st.lists(scales, min_size=d, max_size=d)) + draw(st.sampled_from([0.0, 5.0]))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    assume(len(set(labels)) > 1)
    decays = [10.0**e for e in draw(st.lists(st.integers(-6, 5), min_size=1, max_size=3))]
    tol = draw(st.sampled_from([0.3, 1e-2, 1e-4, 1e-8, 1e-12]))
    return x, np.array(labels), decays, tol


def check(problem, task):
    x, y, decays, tol = problem
    if task == "multiclass":
        used = np.unique(y)
        labels, problems = y, [(used, (y[:, None] == used).astype(float))]
    else:
        used = [k for k in np.unique(y) if 0 < (y == k).sum() < len(y)]
        labels = np.stack([y == k for k in used], axis=1).astype(int)
        problems = [([i], labels[:, [i]].astype(float)) for i in range(len(used))]
    for point in fit_path(x, labels, decays, task=task, tol=tol).points:
        total = 0
        for rows, targets in problems:
            decay, softmax = point.weight_decay, task == "multiclass"
            best = exact.solve(x, targets, decay, softmax=softmax)
            # The independent minimum is known far better than what is judged by it.
            assert best.upper - best.lower <= 1e-13 * best.lower
            w, b = point.weights[rows].T, point.intercepts[rows]
            reached = exact.value(x, targets, w, b, decay, softmax)
            total += reached
            true = (reached - best.upper) / best.lower
            assert true >= -1e-13
            if point.relative_gap is not None:
                assert true <= point.relative_gap + ROUNDING
        assert point.objective == pytest.approx(float(total), rel=1e-9, abs=1e-13)
        assert point.converged == (point.relative_gap is not None and point.relative_gap <= tol)


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(problem=problems())
def test_the_bound_holds(task, problem):
    check(problem, task)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@settings(max_examples=200, deadline=None, suppress_health_check=QUIET)
@given(problem=problems())
def test_the_bound_holds_on_two_hundred_problems(task, problem):
    check(problem, task)


def test_a_bound_that_is_too_low_would_be_seen(monkeypatch):
    real = fit_path

    def boasting(*arguments, **options):
        points = real(*arguments, **options).points
        return Path(tuple(replace(p, relative_gap=p.relative_gap / 50) for p in points))

    monkeypatch.setitem(globals(), "fit_path", boasting)
    x = np.random.RandomState(0).randn(14, 4)
    with pytest.raises(AssertionError):
        check((x, np.arange(14) % 3, [0.1, 0.01], 0.3), "multiclass")
