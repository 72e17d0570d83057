"""The estimator: scikit-learn's contract, and the choice that the protocol makes."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from tests.protocols.test_logistic import blobs
from transferbench.protocols import LogisticRegressionPath, logistic_path
from transferbench.protocols.linear import select
from transferbench.protocols.logistic import fit_path

CS = [100.0, 1.0, 0.01, 1.0, 1e-4]


@parametrize_with_checks([LogisticRegressionPath(Cs=[0.1, 10.0]), LogisticRegressionPath(Cs=[1.0])])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_the_example_of_the_docstring():
    found = doctest.testmod(logistic_path)
    assert found.attempted >= 6
    assert found.failed == 0


def test_the_package_names_it_without_loading_it():
    code = (
        "import sys, transferbench.protocols as p; assert 'sklearn' not in sys.modules; "
        "p.LogisticRegressionPath; assert 'sklearn' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_it_chooses_on_the_given_samples_and_fits_all(classes):
    x, y = blobs(200, 30, classes, spread=4)
    names = np.array(["ash", "beech", "cedar", "dogwood"])
    held = np.arange(150, 200)
    model = LogisticRegressionPath(CS, tol=1e-10).fit(x, names[y], validation=held)

    fits = [LogisticRegression(C=c, tol=1e-10, solver="newton-cg", max_iter=999) for c in CS]
    scores = [fit.fit(x[:150], y[:150]).score(x[150:], y[150:]) for fit in fits]
    np.testing.assert_allclose(model.scores_, scores)
    # Where several are equal the largest C is taken.
    assert max(c for c, score in zip(CS, scores, strict=True) if score == max(scores)) == model.C_
    assert len(set(scores)) > 1

    final = LogisticRegression(C=model.C_, tol=1e-10, solver="newton-cg", max_iter=999).fit(x, y)
    np.testing.assert_allclose(model.coef_, final.coef_, atol=1e-5)
    np.testing.assert_allclose(model.intercept_, final.intercept_, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(x), final.predict_proba(x), atol=1e-5)
    np.testing.assert_allclose(model.decision_function(x), final.decision_function(x), atol=1e-4)
    assert (model.predict(x) == names[final.predict(x)]).all()
    assert model.score(x, names[y]) == pytest.approx(final.score(x, y))
    assert model.classes_.tolist() == sorted(set(names[y]))
    assert model.n_features_in_ == 30
    assert model.point_.converged
    for point, c in zip(model.path_.points, model.Cs_, strict=True):
        assert point.weight_decay == pytest.approx(1 / c)
        assert point.relative_gap <= 1e-10


def test_a_mask_and_positions_mean_the_same():
    x, y = blobs(spread=4)
    held = np.random.RandomState(0).rand(len(y)) < 0.3
    one = LogisticRegressionPath(CS).fit(x, y, validation=held)
    other = LogisticRegressionPath(CS).fit(x, y, validation=np.flatnonzero(held))
    assert (one.scores_ == other.scores_).all()
    assert (one.coef_ == other.coef_).all()


def test_equal_scores_go_to_the_weakest_penalty_in_whatever_order():
    x, y = blobs(spread=0.1)
    for cs in ([1.0, 100.0, 10.0], [100.0, 10.0, 1.0]):
        model = LogisticRegressionPath(cs).fit(x, y)
        assert (model.scores_ == 1).all()
        assert model.C_ == 100
        assert model.Cs_.tolist() == cs


def test_without_a_choice_of_samples_each_class_gives_a_fifth():
    x, y = blobs(spread=4)
    model = LogisticRegressionPath(CS).fit(x, y)
    again = LogisticRegressionPath(CS).fit(x, y)
    assert (model.scores_ == again.scores_).all()
    held = logistic_path._held_out(y, None)
    for k in range(4):
        count = (y == k).sum()
        assert held[y == k].sum() == (count + 3) // 5
    chosen = LogisticRegressionPath(CS).fit(x, y, validation=held)
    assert (chosen.scores_ == model.scores_).all()


def test_the_default_penalties_are_the_papers():
    x, y = blobs(60, 4, 3)
    model = LogisticRegressionPath().fit(x, y)
    path = fit_path(x, y, 1 / model.Cs_)
    assert len(model.Cs_) == 45
    np.testing.assert_allclose(model.Cs_[[0, 22, 44]], [1e6, 10**0.5, 1e-5])
    chosen = model.Cs_[select(model.scores_)]
    assert chosen == model.C_
    assert all(point.converged for point in (*model.path_.points, *path.points))


def test_one_penalty_is_a_certified_logistic_regression_on_all_samples():
    x, y = blobs()
    model = LogisticRegressionPath([3.0]).fit(x, y)
    assert model.C_ == 3
    assert np.isnan(model.scores_).all()
    assert model.path_.points == (model.point_,)
    np.testing.assert_array_equal(model.coef_, fit_path(x, y, [1 / 3]).points[0].weights)


def test_a_class_of_one_sample_is_learned():
    x, y = blobs(classes=3)
    y = np.where(np.arange(len(y)) == 7, 9, y)
    model = LogisticRegressionPath([1e4]).fit(x, y)
    searched = LogisticRegressionPath([1e4, 1e3]).fit(x, y)
    assert model.predict(x[[7]]) == searched.predict(x[[7]]) == 9
    absent = LogisticRegressionPath([1e4, 1e3]).fit(x, y, validation=[7, 8, 9])
    assert not absent.path_.points[0].weights[3].any()
    assert absent.predict(x[[7]]) == 9


def test_it_works_inside_a_pipeline():
    x, y = blobs(spread=4)
    pipeline = make_pipeline(StandardScaler(), LogisticRegressionPath(CS))
    pipeline.fit(x, y, logisticregressionpath__validation=range(100, 120))
    assert pipeline.score(x, y) > 0.4
    assert len(pipeline[-1].scores_) == len(CS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Cs": []}, "Cs must be numbers above 0"),
        ({"Cs": [1.0, 0.0]}, "Cs must be numbers above 0"),
        ({"Cs": [1.0, np.nan]}, "Cs must be numbers above 0"),
        ({"tol": 0}, "tol must be above 0"),
        ({"y": np.zeros(120)}, "y has one class"),
        ({"y": np.arange(120).astype(str)}, "every class has one sample"),
        ({"validation": [120]}, "validation does not name samples 0 to 119"),
        ({"validation": [0.5]}, "validation does not name samples 0 to 119"),
        ({"validation": np.ones(7, bool)}, "validation does not name samples 0 to 119"),
        ({"validation": []}, "0 of 120 samples are for validation"),
        ({"validation": range(120)}, "120 of 120 samples are for validation"),
    ],
)
@pytest.mark.filterwarnings("ignore:The number of unique classes")
def test_what_cannot_be_fitted_is_refused(change, message):
    x, y = blobs()
    model = LogisticRegressionPath(change.get("Cs", CS), tol=change.get("tol", 1e-4))
    with pytest.raises(ValueError, match=message):
        model.fit(x, change.get("y", y), validation=change.get("validation"))
