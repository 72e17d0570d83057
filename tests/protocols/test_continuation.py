"""Where searches along a path of penalties start, and that it decides nothing but their length."""

from __future__ import annotations

import itertools
from math import log

import numpy as np
import pytest
import torch

from tests.protocols.test_logistic import blobs
from transferbench.protocols import continuation, curvature, newton
from transferbench.protocols.grids import weight_decays
from transferbench.protocols.logistic import fit_path
from transferbench.protocols.span import Span

GRID = weight_decays()[::-1]


def test_every_second_penalty_of_the_papers_grid_comes_first_and_both_ends():
    first, between = continuation.order(GRID)
    assert first == list(range(0, 45, 2))
    assert between == list(range(1, 44, 2))
    first, between = continuation.order(GRID[:-1])
    assert first[-2:] == [42, 43]
    assert sorted(first + between) == list(range(44))


@pytest.mark.parametrize(
    ("decays", "first"),
    [([1.0], [0]), ([9.0, 1.0], [0, 1]), ([9.0, 3.0, 1.0], [0, 2]), ([11.0, 3.0, 1.0], [0, 1, 2])],
)
def test_few_or_distant_penalties_are_solved_one_after_the_other(decays, first):
    assert continuation.order(decays)[0] == first


def test_a_curve_goes_through_the_nearest_without_a_gap():
    first, _ = continuation.order(GRID)
    assert continuation.around(GRID, first, 21) == [16, 18, 20, 22, 24, 26]
    assert continuation.around(GRID, first, 1) == [0, 2, 4, 6, 8, 10]
    assert continuation.around(GRID, first, 43) == [34, 36, 38, 40, 42, 44]
    apart = [1e5, 9.0, 3.0, 1.0, 1e-5]
    first, between = continuation.order(apart)
    assert between == [2]
    assert continuation.around(apart, first, 2) == [1, 3]


@pytest.mark.parametrize(
    ("start", "decay", "between"),
    [(1.0, 2.0, []), (1e-300, 1.0, []), (10.0, 10.0, []), (10.0, 4.0, []), (100.0, 10.0, [31.6])],
)
def test_stones_lead_to_a_penalty_far_away(start, decay, between):
    assert continuation.stones(start, decay) == pytest.approx(between, rel=1e-2)
    many = [1e6, *continuation.stones(1e6, 1e-6), 1e-6]
    assert max(a / b for a, b in itertools.pairwise(many)) <= continuation.STEP * 1.001
    assert len(many) == 25


def test_a_curve_is_the_polynomial_through_its_points():
    def at(decay):
        t = log(decay)
        w = torch.tensor([t**5 - 2 * t, 1.0], dtype=torch.float64)
        return continuation.Solved(decay, w, w[:1] + t**2)

    solved = [at(GRID[i]) for i in (0, 2, 4, 6, 8, 10)]
    w, b = continuation.curve(solved, GRID[5])
    torch.testing.assert_close(w, at(GRID[5]).w)
    torch.testing.assert_close(b, at(GRID[5]).b)


def test_a_weak_penalty_alone_costs_few_products(monkeypatch):
    # What a search leaves to the next shortens the long way too.
    monkeypatch.setattr(curvature, "KEPT", 0)
    monkeypatch.setattr(curvature, "LARGEST_HESSIAN", 0)
    x, y = blobs(200, 30, 4, spread=3)
    counted = []
    product = curvature.Curvature.product
    monkeypatch.setattr(
        curvature.Curvature, "product", lambda self, w: counted.append(1) or product(self, w)
    )
    spent = []
    for far in (continuation.STEP, 1e12):
        monkeypatch.setattr(continuation, "STEP", far)
        counted.clear()
        (point,) = fit_path(x, y, [1e-4]).points
        assert point.converged
        spent.append(len(counted))
    assert spent[0] < 0.7 * spent[1]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("largest", [0, 500])
def test_the_start_and_company_of_a_penalty_change_no_solution(task, largest, monkeypatch):
    monkeypatch.setattr(curvature, "LARGEST_HESSIAN", largest)
    x, y = blobs(90, 12, 3, spread=2)
    labels = y if task == "multiclass" else np.stack([y == 0, y > 0], axis=1).astype(int)
    decays = GRID[::3]
    together = fit_path(x, labels, decays, task=task, tol=1e-9).points
    for decay, point in zip(decays, together, strict=True):
        (alone,) = fit_path(x, labels, [decay], task=task, tol=1e-9).points
        assert point.converged
        assert alone.converged
        assert point.objective == pytest.approx(alone.objective, rel=2e-9)


def test_penalties_between_are_mostly_solved_by_the_curve_alone():
    x, y = blobs(300, 40, 4, spread=5)
    points = fit_path(x, y, GRID).points
    assert sum(point.iterations == 0 for point in points[1::2]) > 15
    assert sum(point.iterations for point in points) < 45


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_where_float32_finds_no_direction_float64_does(wrong, monkeypatch):
    class Coarse(curvature.Curvature):
        def product(self, w):
            return super().product(w) if w.dtype == torch.float64 else wrong * w

    monkeypatch.setattr(curvature, "LARGEST_HESSIAN", 0)
    x, y = blobs(90, 12, 3, spread=2)
    (expected,) = fit_path(x, y, [0.1], tol=1e-10).points
    monkeypatch.setattr(newton, "Curvature", Coarse)
    (point,) = fit_path(x, y, [0.1], tol=1e-10).points
    assert point.converged
    assert point.objective == pytest.approx(expected.objective, rel=1e-9)
    assert point.iterations > expected.iterations


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize(("single", "near"), [(True, 1e-3), (False, 1e-9)])
def test_directions_by_products_are_those_by_factors(softmax, single, near, monkeypatch):
    draw = np.random.RandomState(3)
    span = Span(draw.randn(60, 5), "cpu")
    z = torch.from_numpy(draw.randn(2, 3, 60))
    p = z.softmax(dim=1) if softmax else z.sigmoid()
    gradient = torch.from_numpy(draw.randn(2, 3, 5))
    if softmax:
        gradient -= gradient.mean(dim=1, keepdim=True)
    decay = torch.tensor([0.1, 10.0], dtype=torch.float64).view(2, 1, 1)
    exact = curvature.exact_direction(span, p, gradient, decay, softmax)
    hessian = curvature.Curvature(span, p, decay, softmax, single=single)
    target = torch.full((2, 1 if softmax else 3, 1), near**2 / 100, dtype=torch.float64)
    *found, past = curvature.conjugate_direction(hessian, gradient, target)
    assert past is None
    for one, other in zip(exact, found, strict=True):
        torch.testing.assert_close(one, other, rtol=near, atol=near * float(one.abs().max()))
    monkeypatch.setattr(curvature, "LARGEST_HESSIAN", 1)
    assert curvature.exact_direction(span, p, gradient, decay, softmax) is None


@pytest.mark.parametrize("softmax", [True, False])
def test_along_the_directions_of_a_search_its_hessian_is_inverted(softmax):
    draw = np.random.RandomState(5)
    span = Span(draw.randn(90, 6), "cpu")
    z = torch.from_numpy(draw.randn(1, 3, 90))
    p = z.softmax(dim=1) if softmax else z.sigmoid()
    gradient = torch.from_numpy(draw.randn(1, 3, 6))
    decay = torch.full((1, 1, 1), 0.1, dtype=torch.float64)
    hessian = curvature.Curvature(span, p, decay, softmax, single=False)
    target = torch.full((1, 1 if softmax else 3, 1), 1e-4, dtype=torch.float64)
    *_, past = curvature.conjugate_direction(hessian, gradient, target)
    assert past is not None
    for direction in past.directions:
        again = past.divide(hessian.product(direction[None]), hessian.precondition, hessian.size)
        torch.testing.assert_close(again[0], direction, rtol=1e-6, atol=1e-9)
        twice = past.divide(
            2 * hessian.product(direction[None]), lambda w: hessian.precondition(w) / 2,
            2 * hessian.size,
        )  # fmt: skip
        torch.testing.assert_close(twice[0], direction, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_search_is_shorter_for_what_the_one_before_has_found(task, monkeypatch):
    monkeypatch.setattr(curvature, "LARGEST_HESSIAN", 0)
    x, y = blobs(300, 60, 4, spread=3)
    labels = y if task == "multiclass" else np.stack([y == 0, y > 1], axis=1).astype(int)
    counted = []
    product = curvature.Curvature.product
    monkeypatch.setattr(
        curvature.Curvature, "product", lambda self, w: counted.append(1) or product(self, w)
    )
    spent = []
    for kept in (32, 0):
        monkeypatch.setattr(curvature, "KEPT", kept)
        counted.clear()
        assert all(
            point.converged for point in fit_path(x, labels, GRID, tol=1e-8, task=task).points
        )
        spent.append(len(counted))
    assert spent[0] < 0.9 * spent[1]


@pytest.mark.parametrize("share", [0.3, 0.01])
def test_a_direction_leaves_no_longer_a_residual_than_asked_for(share):
    draw = np.random.RandomState(7)
    span = Span(draw.randn(200, 30) * np.logspace(0, -3, 30), "cpu")
    p = torch.from_numpy(4 * draw.randn(2, 5, 200)).softmax(dim=1)
    gradient = torch.from_numpy(draw.randn(2, 5, 30) * np.logspace(0, -3, 30))
    gradient -= gradient.mean(dim=1, keepdim=True)
    decay = torch.tensor([1e-6, 1e-3], dtype=torch.float64).view(2, 1, 1)
    hessian = curvature.Curvature(span, p, decay, softmax=True, single=False)
    target = torch.full((2, 1, 1), share, dtype=torch.float64)
    dw, db, _ = curvature.conjugate_direction(hessian, gradient, target)
    residual = hessian.product(dw) + gradient
    assert (curvature.total(residual**2, True) <= share * curvature.total(gradient**2, True)).all()
    scores = hessian.scores(span.scores(dw) + db[..., None])
    torch.testing.assert_close(scores.sum(dim=-1), torch.zeros_like(db), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n", "d"), [(50, 7), (7, 50), (5000, 3)])
def test_coordinates_are_a_rotation_of_the_centred_features(n, d):
    draw = np.random.RandomState(1)
    features = (3 + draw.randn(n, d) * np.logspace(0, -2, d)).astype(np.float32)
    span = Span(features, "cpu")
    basis = span.basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(min(n, d), dtype=torch.float64))
    back = span.mean + span.scale * span.x @ basis.T
    torch.testing.assert_close(back, torch.from_numpy(features).double())
    scatter = span.x.T @ span.x
    torch.testing.assert_close(scatter, scatter.diagonal().diag(), atol=1e-10 * n, rtol=0)
    torch.testing.assert_close(span.squares, scatter.diagonal())
    assert float(span.squares.sum()) == pytest.approx(n)
    w = torch.from_numpy(draw.randn(2, 3, min(n, d)))
    torch.testing.assert_close(span.scores(w)[1], w[1] @ span.x.T)
    torch.testing.assert_close(
        span.scores(w.float()).double(), span.scores(w), rtol=1e-4, atol=1e-4
    )
