"""The solver: right, certified, independent of the path, and truthful where it fails."""

import numpy as np
import pytest

from transferbench.errors import UserError
from transferbench.protocols import curvature, newton
from transferbench.protocols.logistic import fit_path


def blobs(n=120, d=10, classes=4, spread=1.5, seed=0):
    draw = np.random.RandomState(seed)
    labels = draw.randint(0, classes, n)
    return draw.randn(classes, d)[labels] + spread * draw.randn(n, d), labels


def objective(x, y, weights, intercepts, decay):
    z = x @ weights.T + intercepts
    z = z - z.max(axis=1, keepdims=True)
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]
    return losses.sum() + decay / 2 * (weights**2).sum()


def binary_objective(x, y, weights, intercept, decay):
    return np.logaddexp(0, (1 - 2.0 * y) * (x @ weights + intercept)).sum() + decay / 2 * (
        weights @ weights
    )


DECAYS = [1e-6, 1e-2, 1.0, 1e5]


@pytest.mark.parametrize(("n", "d"), [(120, 10), (40, 90)])
def test_agrees_with_scikit_learn_where_that_converges(n, d):
    from sklearn.linear_model import LogisticRegression

    x, y = blobs(n, d)
    for decay in (1e-1, 10.0):
        point = fit_path(x, y, [decay], tol=1e-14).points[0]
        other = LogisticRegression(C=1 / decay, tol=1e-12, solver="newton-cg", max_iter=1000)
        other.fit(x, y)
        np.testing.assert_allclose(point.weights, other.coef_, atol=1e-5)
        np.testing.assert_allclose(
            point.intercepts, other.intercept_ - other.intercept_.mean(), atol=1e-5
        )


def test_objective_and_gap_are_what_they_say():
    x, y = blobs()
    exact = fit_path(x, y, DECAYS, tol=1e-13)
    rough = fit_path(x, y, DECAYS, tol=1e-1)
    for best, point in zip(exact.points, rough.points, strict=True):
        assert best.converged
        assert point.converged
        said = objective(x, y, point.weights, point.intercepts, point.weight_decay)
        assert said == pytest.approx(point.objective, rel=1e-9, abs=1e-11)
        true_gap = (point.objective - best.objective) / best.objective
        assert -1e-9 <= true_gap <= point.relative_gap + 1e-12
        assert point.relative_gap <= 1e-1


def test_the_solution_does_not_depend_on_the_path():
    x, y = blobs()
    together = fit_path(x, y, DECAYS, tol=1e-12)
    reverse = fit_path(x, y, DECAYS[::-1], tol=1e-12)
    for i, decay in enumerate(DECAYS):
        alone = fit_path(x, y, [decay], tol=1e-12).points[0]
        assert together.points[i].weight_decay == alone.weight_decay == decay
        np.testing.assert_allclose(together.points[i].weights, alone.weights, atol=1e-4)
        np.testing.assert_array_equal(together.points[i].weights, reverse.points[-1 - i].weights)


def test_scale_offset_and_spare_dimensions_of_the_features_do_no_harm():
    x, y = blobs()
    plain = fit_path(x, y, [1.0], tol=1e-12).points[0]
    shifted = fit_path(x + 1000, y, [1.0], tol=1e-12).points[0]
    np.testing.assert_allclose(shifted.weights, plain.weights, atol=1e-5)
    scaled = fit_path(x * 1000, y, [1e6], tol=1e-12).points[0]
    np.testing.assert_allclose(scaled.weights * 1000, plain.weights, atol=1e-5)
    spare = np.concatenate([x, np.zeros((len(x), 3)), x[:, :2]], axis=1)
    point = fit_path(spare, y, [1.0], tol=1e-12).points[0]
    assert point.converged
    assert np.abs(point.weights[:, 10:13]).max() < 1e-12


def test_multilabel_problems_are_independent():
    x, y = blobs()
    many = np.stack([y == 0, y > 1, (y + np.arange(len(y))) % 2 == 0], axis=1).astype(np.uint8)
    together = fit_path(x, many, DECAYS, task="multilabel", tol=1e-10)
    for k in range(3):
        alone = fit_path(x, many[:, [k]], DECAYS, task="multilabel", tol=1e-10)
        for a, b in zip(together.points, alone.points, strict=True):
            assert a.converged
            np.testing.assert_allclose(a.weights[k], b.weights[0], rtol=1e-3, atol=1e-4)
    for point in together.points:
        said = sum(
            binary_objective(
                x, many[:, k], point.weights[k], point.intercepts[k], point.weight_decay
            )
            for k in range(3)
        )
        assert said == pytest.approx(point.objective, rel=1e-9)


def test_classes_without_images_have_scores_and_are_never_chosen():
    x, y = blobs(classes=3)
    y = np.where(y == 1, 4, y)
    points = fit_path(x, y, DECAYS, classes=6).points
    for point in points:
        assert point.weights.shape == (6, 10)
        scores = point.scores(100 * np.random.RandomState(1).randn(500, 10))
        assert np.isfinite(scores).all()
        assert set(np.unique(scores.argmax(axis=1))) <= {0, 2, 4}


def test_labels_that_all_or_no_images_have_are_constant():
    x, y = blobs()
    many = np.stack([y == 0, np.zeros_like(y), np.ones_like(y)], axis=1)
    point = fit_path(x, many, [1.0], task="multilabel").points[0]
    assert not point.weights[1:].any()
    assert point.intercepts[1] < -4 < 4 < point.intercepts[2]
    assert point.weights[0].any()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused_with_their_place(kind, bad):
    x, y = blobs()
    broken = x.astype(kind)
    broken[3, 2] = broken[70, 1] = bad
    with pytest.raises(UserError) as caught:
        fit_path(broken, y, [1.0])
    assert str(caught.value) == (
        "the features of 2 of 120 images are not finite numbers: "
        f"the first, at row 3 and column 2 (from 0), is {bad}"
    )


X, Y = blobs()
MANY = np.stack([Y == 0, Y == 1], axis=1).astype(int)


def changed(labels, place, value):
    labels = labels.astype(float)
    labels[place] = value
    return labels


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, np.full(120, 2), {}, "all 120 training labels are equal: nothing can be learned"),
        (X, 0 * MANY, {"task": "multilabel"}, "every label is the same for all training images"),
        (X, Y, {"classes": 3}, "the label 3 at row .* is no class; valid: 0 to 2"),
        (X, changed(Y, 5, -1), {}, r"the label -1.0 at row 5 \(from 0\) is no class; valid: 0 and"),
        (X, changed(Y, 5, 0.5), {}, "the label 0.5 at row 5"),
        (X, changed(Y, 5, np.nan), {}, "the label nan at row 5"),
        (X, changed(MANY, (4, 1), 2), {"task": "multilabel"}, "the label 2.0 at row 4 and column"),
        (X, MANY, {"task": "multilabel", "classes": 3}, "of 2 classes, but classes = 3"),
        (X, MANY, {}, r"multiclass labels must be an array \(images,\), not \(120, 2\)"),
        (X, Y, {"task": "multilabel"}, r"must be an array \(images, classes\), not \(120,\)"),
        (X, Y.astype(str), {}, "multiclass labels must be whole numbers"),
        (X, Y, {"task": "multiclas"}, "unknown task 'multiclas'; did you mean 'multiclass'"),
        (X, Y[:-1], {}, "there are 120 rows of features, but 119 labels"),
        (X[0], Y, {}, r"features must be an array \(images, D\), not of shape \(10,\)"),
        (X[:, :0], Y, {}, r"not of shape \(120, 0\)"),
        (X.astype(complex), Y, {}, "features must be real numbers, not of type complex128"),
        (X, Y, {"decays": []}, "no weight decay"),
        (X, Y, {"decays": [1.0, 0.0]}, "weight decays must be above 0 and finite, not 0.0"),
        (X, Y, {"decays": [1.0, -1.0]}, "weight decays must be above 0 and finite, not -1.0"),
        (X, Y, {"decays": [np.nan, 1.0]}, "weight decays must be above 0 and finite, not nan"),
        (X, Y, {"decays": [np.inf]}, "weight decays must be above 0 and finite, not inf"),
        (X, Y, {"tol": 0.0}, "tol must be above 0"),
        (X, Y, {"tol": np.nan}, "tol must be above 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(x, y, options, message):
    options = dict(options)
    decays = options.pop("decays", [1.0])
    with pytest.raises(UserError, match=message) as caught:
        fit_path(x, y, decays, **options)
    assert "\n" not in str(caught.value)


def test_labels_may_be_of_any_type_that_holds_whole_numbers():
    plain = fit_path(X, Y, [1.0]).points[0].weights
    for kind in (np.uint8, np.int16, np.uint64, float):
        np.testing.assert_array_equal(fit_path(X, Y.astype(kind), [1.0]).points[0].weights, plain)
    both = fit_path(X, MANY, [1.0], task="multilabel").points[0].weights
    for labels in (MANY.astype(bool), MANY.astype(float), 2 * MANY - 1):
        other = fit_path(X, labels, [1.0], task="multilabel").points[0].weights
        np.testing.assert_array_equal(other, both)


def test_an_unfinished_point_says_so(monkeypatch):
    monkeypatch.setattr(newton, "NEWTON_STEPS", 1)
    x, y = blobs(spread=0.3)
    point = fit_path(x, y, [1e-6], tol=1e-6).points[0]
    assert not point.converged
    assert point.relative_gap is None or point.relative_gap > 1e-6


@pytest.mark.parametrize("spread", [0.05, 1.5, 20.0])
def test_every_point_of_the_papers_grid_converges_without_noise(spread, capfd, recwarn):
    x, y = blobs(200, 30, spread=spread)
    path = fit_path(x.astype(np.float32), y, 10.0 ** np.linspace(-6, 5, 45))
    assert all(point.converged for point in path.points)
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_factorised_hessian_and_conjugate_gradients_find_the_same(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(5)
    features = random.standard_normal((80, 6)) * np.logspace(0, -3, 6)
    labels = random.integers(0, 3, 80) if task == "multiclass" else random.integers(0, 2, (80, 3))
    penalties = [1e-4, 1e-1, 10.0]
    exact = fit_path(features, labels, penalties, task=task, tol=1e-10)
    monkeypatch.setattr(curvature, "LARGEST_HESSIAN", 0)
    products = fit_path(features, labels, penalties, task=task, tol=1e-10)
    for one, other in zip(exact.points, products.points, strict=True):
        assert one.converged
        assert other.converged
        np.testing.assert_allclose(one.weights, other.weights, rtol=1e-3, atol=1e-6)
        assert one.objective == pytest.approx(other.objective, rel=1e-9)
        assert one.iterations <= other.iterations
