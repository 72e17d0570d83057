"""Problems that a solver may stumble over: certified, and what an independent solver finds."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from tests.protocols import exact
from tests.protocols.test_logistic import blobs
from transferbench.protocols.logistic import ABSENT, fit_path

TOL = 1e-8
TASKS = ["multiclass", "multilabel"]


def constant_and_repeated():
    x, y = blobs(60, 4, 3)
    return np.concatenate([x, np.full((60, 2), 7.0), x, x[:, :1]], axis=1), y


def repeated_images():
    x, y = blobs(20, 4, 3)
    return np.tile(x, (4, 1)), np.tile(y, 4)


def contradicting_images():
    x, _ = blobs(20, 4, 3)
    return np.repeat(x, 3, axis=0), np.tile([0, 1, 2], 20)


def separable():
    return blobs(60, 5, 3, spread=0.05)


def scaled(*exponents):
    def make():
        x, y = blobs(60, len(exponents), 3)
        return x * 10.0 ** np.array(exponents), y

    return make


def far_from_zero():
    x, y = blobs(60, 4, 3)
    return x + 1e6, y


# Each with the penalties where it is hard; C = 1e6 is a weight decay of 1e-6.
CASES = {
    "constant and repeated features": (constant_and_repeated, [1e-6, 1.0]),
    "repeated images": (repeated_images, [1e-6, 1.0]),
    "equal images of other classes": (contradicting_images, [1e-6, 1.0]),
    "one image per class": (lambda: (blobs(6, 8, 6)[0], np.arange(6)), [1e-6, 1.0, 1e5]),
    "two images": (lambda: (np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([0, 1])), [1e-6, 1.0]),
    "separable": (separable, [1e-6]),
    "scaled by 1e-6": (scaled(-6, -6, -6, -6), [1e-12, 1e-6, 1.0]),
    "scaled by 1e6": (scaled(6, 6, 6, 6), [1e-6, 1.0, 1e12]),
    "of mixed scales": (scaled(-6, -3, 0, 3, 6), [1e-6, 1.0, 1e5]),
    "far from zero": (far_from_zero, [1e-2, 1.0]),
    "one feature": (lambda: blobs(60, 1, 3), [1e-6, 1.0, 1e5]),
    "fewer images than features": (lambda: blobs(25, 70, 3), [1e-6, 1.0, 1e5]),
    "unequal classes": (
        lambda: (blobs(150, 3, 2)[0], (np.arange(150) == 77).astype(int)),
        [1e-6, 1.0],
    ),
}


def problems(labels, task):
    """The problems of one call: rows of the solution, and targets (N, K)."""
    if task == "multiclass":
        return [(slice(None), (labels[:, None] == np.arange(labels.max() + 1)).astype(float))]
    return [([k], labels[:, [k]].astype(float)) for k in range(labels.shape[1])]


def agree(x, labels, task, point):
    """Certified, and as near to the independent solution as the certificates of both allow."""
    assert point.converged
    assert 0 <= point.relative_gap <= TOL
    decay = point.weight_decay
    for rows, targets in problems(labels, task):
        best = exact.solve(x, targets, decay, softmax=task == "multiclass")
        assert best.upper - best.lower <= 1e-10 * best.lower
        w, b = point.weights[rows].T, point.intercepts[rows]
        # Far from zero even longdouble has too few digits for x.w: about the mean it has enough.
        center = x.mean(axis=0)
        shifted = b + center.astype(np.longdouble) @ w
        reached = exact.value(x - center, targets, w, shifted, decay, task == "multiclass")
        # Of the minimum: what the rounding of N x D products in float64 may add.
        assert (reached - best.upper) / best.lower <= point.relative_gap + 1e-9
        # Strong convexity: wd / 2 ||W - W*||^2 <= J - J*, both of features rounded to float64.
        rounding = 1e-16 * (np.abs(x - center) @ np.abs(w)).sum()
        apart = np.sqrt(2 * (max(reached - best.lower, 0) + rounding) / decay)
        assert np.linalg.norm(w - best.weights) <= 1.01 * apart + 1e-12 * np.linalg.norm(w)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", CASES)
def test_a_hard_case_is_certified_and_right(name, task):
    make, decays = CASES[name]
    x, y = make()
    labels = y if task == "multiclass" else np.stack([y == 0, y == 1], axis=1).astype(int)
    for point in fit_path(x, labels, decays, task=task, tol=TOL).points:
        agree(x, labels, task, point)


def test_the_independent_solver_is_right_where_scipys_is():
    from scipy.optimize import minimize

    x, y = blobs(60, 5, 3)
    targets = (y[:, None] == np.arange(3)).astype(float)

    def value(flat):
        w, b = flat[:15].reshape(5, 3), flat[15:]
        return float(exact.value(x, targets, w, b, 0.3, True))

    found = minimize(value, np.zeros(18), method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
    best = exact.solve(x, targets, 0.3, softmax=True)
    assert found.fun == pytest.approx(float(best.upper), rel=1e-7)
    np.testing.assert_allclose(found.x[:15].reshape(5, 3), best.weights.astype(float), atol=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_features_without_variance_leave_the_frequencies_of_the_classes(task):
    y = np.repeat([0, 1, 2], [10, 20, 30])
    labels = y if task == "multiclass" else np.stack([y == 0, y == 1], axis=1).astype(int)
    for x in (np.full((60, 3), 0.3), np.zeros((60, 3)), np.full((60, 3), 1e6)):
        for point in fit_path(x, labels, [1e-6, 1.0, 1e5], task=task, tol=TOL).points:
            assert point.converged
            scores = point.scores(x)
            if task == "multiclass":
                shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
                np.testing.assert_allclose(shares, [[1 / 6, 1 / 3, 1 / 2]] * 60, rtol=1e-6)
            else:
                shares = 1 / (1 + np.exp(-scores))
                np.testing.assert_allclose(shares, [[1 / 6, 1 / 3]] * 60, rtol=1e-6)


def test_a_class_absent_from_training_changes_nothing_for_the_others():
    x, y = blobs(60, 5, 3)
    spread = np.array([1, 2, 4])[y]
    for whole, wide in zip(
        fit_path(x, y, [1e-6, 1.0], tol=TOL).points,
        fit_path(x, spread, [1e-6, 1.0], classes=6, tol=TOL).points,
        strict=True,
    ):
        np.testing.assert_array_equal(wide.weights[[1, 2, 4]], whole.weights)
        np.testing.assert_array_equal(wide.intercepts[[1, 2, 4]], whole.intercepts)
        assert not wide.weights[[0, 3, 5]].any()
        assert (wide.intercepts[[0, 3, 5]] == ABSENT).all()
        agree(x, y, "multiclass", whole)


def test_a_thousand_classes():
    draw = np.random.RandomState(0)
    y = np.concatenate([np.arange(1000), draw.randint(0, 1000, 200)])
    x = draw.randn(1000, 6)[y] + 0.3 * draw.randn(1200, 6)
    (point,) = fit_path(x, y, [1.0], tol=1e-6).points
    assert point.converged
    # Without an independent solve: the gradient, in other words and by other products.
    z = x @ point.weights.T + point.intercepts
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(1200), y] -= 1
    gradient = p.T @ x + point.weights
    bound = (gradient**2).sum() / 2
    assert np.abs(p.sum(axis=0)).max() < 1e-8
    assert bound <= 1e-6 * (point.objective - bound)


@pytest.mark.parametrize("task", TASKS)
def test_float16_features_are_the_numbers_that_they_hold(task):
    x, y = blobs(60, 5, 3)
    labels = y if task == "multiclass" else np.stack([y == 0, y == 1], axis=1).astype(int)
    half = x.astype(np.float16)
    for kind in (np.float32, np.float64):
        one = fit_path(half, labels, [1e-3, 1.0], task=task).points
        other = fit_path(half.astype(kind), labels, [1e-3, 1.0], task=task).points
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.weights, b.weights)


def test_features_in_any_memory_are_the_same_and_left_as_they_are():
    x, y = blobs(60, 5, 3)
    plain = fit_path(x, y, [1.0]).points[0].weights
    spaced = np.zeros((120, 10))
    spaced[::2, ::2] = x
    fixed = x.copy()
    fixed.setflags(write=False)
    for form in (np.asfortranarray(x), spaced[::2, ::2], fixed, x.astype(">f8"), x[::-1][::-1]):
        given = form.copy()
        np.testing.assert_allclose(fit_path(form, y, [1.0]).points[0].weights, plain, rtol=1e-9)
        np.testing.assert_array_equal(form, given)


@pytest.mark.parametrize("task", TASKS)
def test_more_features_than_memory_for_their_square(task):
    draw = np.random.RandomState(0)
    n, d = 50, 100_000
    x = draw.standard_normal((n, d)).astype(np.float32)
    y = draw.randint(0, 3, n)
    labels = y if task == "multiclass" else (y == 0).astype(int)[:, None]
    tracemalloc.start()
    (point,) = fit_path(x, labels, [10.0], task=task, tol=TOL).points
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # D x D numbers are 80 GB; this is NumPy's part, and torch's products took a second.
    assert peak < 3 * n * d * 8
    assert point.weights.shape == (3 if task == "multiclass" else 1, d)
    agree(x, labels, task, point)


THREADS = """
import hashlib
import numpy as np
import torch
from tests.protocols.test_logistic import blobs
from transferbench.protocols.linear import select, validation_curve
from transferbench.protocols.logistic import fit_path

x, y = blobs(500, 60, 4, spread=5)
for threads in (1, 2, 1, 2):
    torch.set_num_threads(threads)
    path = fit_path(x[:300].copy(), y[:300], [1e-2, 1.0, 10.0, 100.0, 1e3])
    arrays = [a for point in path.points for a in (point.weights, point.intercepts)]
    digest = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()
    print(digest, select(validation_curve(path, x[300:], y[300:], "top1")))
"""


def test_threads_change_no_bit_at_their_number_and_no_choice_at_any():
    def run():
        # Threads that wait for each other busily take minutes where others use the machine.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(
            [sys.executable, "-c", THREADS], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    one, two, *again = run()
    assert again == [one, two]
    assert run() == [one, two, one, two]
    assert one.split()[1] == two.split()[1]
