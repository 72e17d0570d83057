"""The transfer paper's solver: against scikit-learn's own, and against the optimum."""

import warnings

import numpy as np
import pytest

from transferbench.errors import UserError
from transferbench.protocols.lbfgs import stopped_path
from transferbench.protocols.logistic import fit_path

DECAYS = [1e-3, 1e-1, 10.0]


def problem(classes=3, n=120, width=8, seed=0):
    draw = np.random.RandomState(seed)
    labels = draw.randint(0, classes, n)
    features = (
        draw.randn(n, width) * np.linspace(0.2, 3, width) + draw.randn(classes, width)[labels]
    )
    return features.astype(np.float32), labels


def test_the_iterates_are_scikit_learns_from_one_penalty_to_the_next():
    from sklearn.linear_model import LogisticRegression

    x, y = problem()
    # So few iterations that the tolerances, which differ between releases, do not matter.
    ours = list(stopped_path(x, y, DECAYS, iterations=12))
    theirs = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=12, tol=1e-30)
    for point in ours:
        theirs.set_params(C=1 / point.weight_decay)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.fit(x.astype(np.float64), y)
        assert point.iterations == 12
        assert not point.converged
        np.testing.assert_allclose(point.weights, theirs.coef_, atol=1e-6)
        np.testing.assert_allclose(point.intercepts, theirs.intercept_, atol=1e-6)
        np.testing.assert_allclose(point.scores(x), theirs.decision_function(x), atol=1e-5)


def test_with_time_enough_it_comes_to_the_optimum():
    x, y = problem()
    optimum = fit_path(x, y, DECAYS, tol=1e-10).points
    for point, best in zip(
        stopped_path(x, y, DECAYS, iterations=5000, largest_gradient=1e-8), optimum, strict=True
    ):
        assert point.converged
        assert point.objective == pytest.approx(best.objective, rel=1e-6)
        assert point.objective >= best.objective * (1 - 1e-9)


def test_a_hundred_iterations_stop_short_where_the_penalty_is_weak():
    x, y = problem(n=60, width=40)
    (early,) = stopped_path(x, y, [1e-6])
    best = fit_path(x, y, [1e-6], tol=1e-6).points[0]
    assert early.objective > 1.05 * best.objective


@pytest.mark.parametrize("absent", [False, True])
def test_two_rows_a_label_halve_the_penalty(absent):
    x, _ = problem()
    labels = (np.random.RandomState(1).rand(len(x), 3) < 0.3).astype(np.uint8)
    labels[:, 0] |= x[:, 7] > 1
    if absent:
        labels[:, 1] = 0
    (point,) = stopped_path(x, labels, [4.0], task="multilabel", iterations=5000)
    best = fit_path(x, labels, [2.0], task="multilabel", tol=1e-10).points[0]
    assert point.objective == pytest.approx(best.objective, rel=1e-6)
    solved = [0, 2] if absent else [0, 1, 2]
    np.testing.assert_allclose(2 * point.weights[solved], best.weights[solved], atol=1e-3)
    np.testing.assert_allclose(2 * point.intercepts[solved], best.intercepts[solved], atol=1e-3)
    if absent:
        assert point.intercepts[1] < -4
        assert not point.weights[1].any()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_sweep_goes_on_from_any_penalty(task):
    x, y = problem(classes=4)
    labels = y if task == "multiclass" else np.eye(4, dtype=np.uint8)[y]
    options = {"task": task, "classes": 4, "iterations": 7}
    whole = list(stopped_path(x, labels, DECAYS, **options))
    rest = list(stopped_path(x, labels, DECAYS[1:], start=whole[0], **options))
    for one, other in zip(whole[1:], rest, strict=True):
        assert (one.weights == other.weights).all()
        assert (one.intercepts == other.intercepts).all()
        assert one.objective == other.objective


def test_bad_input_is_named():
    x, y = problem()
    with pytest.raises(UserError, match="all 120 training labels are equal"):
        next(stopped_path(x, np.zeros_like(y), [1.0]))
    x[3] = np.nan
    with pytest.raises(UserError, match="features of 1 of 120 images are not finite"):
        next(stopped_path(x, y, [1.0]))
