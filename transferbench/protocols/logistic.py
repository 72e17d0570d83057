"""L2-regularised logistic regression along a path of penalties, each point certified.

Multiclass: J(W, b) = sum_i [ln sum_k exp(w_k.x_i + b_k) - (w_y.x_i + b_y)] + wd/2 ||W||^2, a sum
over images, intercepts free. Multilabel: for each label J(w, b) = sum_i ln(1 + exp(-s_i (w.x_i +
b))) + wd/2 ||w||^2 with s_i = +-1. C of scikit-learn is 1 / wd (arXiv 2011.13377, app. A.2).

The solution depends on no path, start or iteration cap: a point is converged once its duality gap
is below the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from transferbench.errors import UserError, unknown
from transferbench.measures.metrics import Array, Floats
from transferbench.protocols.newton import Point

Task = Literal["multiclass", "multilabel"]

ABSENT = -100.0
"""Intercept of a class without training images: the others sum to 0, so one of them is larger."""


@dataclass(frozen=True)
class Path:
    """Solutions in the order of the penalties that were asked for."""

    points: tuple[Point, ...]


def fit_path(
    features: Array,
    labels: Array,
    weight_decays: Sequence[float],
    *,
    task: Task = "multiclass",
    classes: int | None = None,
    tol: float = 1e-4,
    device: str = "cpu",
    on_point: Callable[[int, Point], object] = lambda index, point: None,
) -> Path:
    """Solve logistic regression for each penalty.

    Parameters
    ----------
    features : array (N, D)
        Any real type, float16 too; computed with in float64.
    labels : array (N,) of class indices, or (N, K) of 0 and 1 for multilabel
    weight_decays : sequence of float
        wd > 0, in any order.
    task : {"multiclass", "multilabel"}
    classes : int, optional
        K of the data set; default the labels' largest + 1. A class without training images has
        weights 0 and is never the largest; a label that all or no images have gets its log odds.
    tol : float
        Largest relative duality gap of a converged point, above 0.
    device : str
        Where to compute, in float64.
    on_point : callable
        Called with the place of each penalty and its solution, in the order of `continuation`.

    Returns
    -------
    Path
        `points[i]` belongs to `weight_decays[i]`.

    Raises
    ------
    UserError
        If a feature is not a finite number (with its row and column), a weight decay or `tol` not
        a number above 0, a label no class, all labels are equal, or shapes do not fit.
    """
    import torch

    from transferbench.protocols.newton import Problem
    from transferbench.protocols.span import Span

    _check_numbers(weight_decays, tol)
    wanted, used, idle = targets(np.asarray(labels), task, classes)
    x = finite(features)
    if len(x) != len(wanted):
        raise UserError(f"there are {len(x)} rows of features, but {len(wanted)} labels")
    # Metal has no float64.
    where = "cpu" if device.startswith("mps") else device
    rows = torch.from_numpy(np.ascontiguousarray(wanted.T, dtype=np.uint8)).to(where)
    del wanted
    problem = Problem(Span(x, where), rows, task == "multiclass")
    given = np.asarray(weight_decays, dtype=np.float64)
    falling = np.unique(given)[::-1]
    points: dict[int, Point] = {}
    for place, solved in problem.path(falling.tolist(), tol):
        point = widen(solved, used, idle)
        for index in np.flatnonzero(given == falling[place]).tolist():
            points[index] = point
            on_point(index, point)
    return Path(tuple(points[i] for i in range(len(given))))


def finite(features: Array) -> Array:
    """Return features (N, D) as they are, if they are such an array of finite real numbers.

    Raises
    ------
    UserError
        If they are no such array, or one is not a finite number: with the first's row and column.
    """
    given = np.asarray(features)
    if given.ndim != 2 or given.shape[1] == 0:
        raise UserError(f"features must be an array (images, D), not of shape {given.shape}")
    if given.dtype.kind not in "fiub":
        raise UserError(f"features must be real numbers, not of type {given.dtype}")
    usable = np.isfinite(given)
    if not usable.all():
        row, column = np.argwhere(~usable)[0]
        raise UserError(
            f"the features of {(~usable).any(axis=1).sum()} of {len(given)} images are not finite"
            f" numbers: the first, at row {row} and column {column} (from 0), is "
            f"{given[row, column]}"
        )
    return given


def targets(labels: Array, task: Task, classes: int | None) -> tuple[Floats, Array, Floats]:
    """Return the targets (N, U) of the classes to be solved, which those are, and b (K,) of all.

    Raises
    ------
    UserError
        If labels are no classes of the task, or all are equal.
    """
    _check_labels(labels, task, classes)
    if task == "multiclass":
        labels = labels.astype(np.int64, copy=False)
        count = np.bincount(labels, minlength=classes or 0)
        used = np.flatnonzero(count)
        if len(used) < 2:
            raise UserError(f"all {len(labels)} training labels are equal: nothing can be learned")
        return (labels[:, None] == used).astype(np.float64), used, np.full(len(count), ABSENT)
    positive = (labels > 0).sum(axis=0)
    used = np.flatnonzero((positive > 0) & (positive < len(labels)))
    if len(used) == 0:
        raise UserError("every label is the same for all training images: nothing can be learned")
    odds = np.log((positive + 0.5) / (len(labels) - positive + 0.5))
    return (labels[:, used] > 0).astype(np.float64), used, odds


def _check_labels(labels: Array, task: Task, classes: int | None) -> None:
    """Refuse what is no array of labels; a multilabel -1 counts as 0, as VOC2007 writes it."""
    shapes = {"multiclass": "(images,)", "multilabel": "(images, classes)"}
    if task not in shapes:
        raise unknown("task", task, shapes)
    if labels.ndim != (1 if task == "multiclass" else 2) or len(labels) == 0:
        raise UserError(f"{task} labels must be an array {shapes[task]}, not {labels.shape}")
    if task == "multilabel" and classes not in (None, labels.shape[1]):
        raise UserError(f"there are labels of {labels.shape[1]} classes, but classes = {classes}")
    if labels.dtype.kind not in "fiub":
        raise UserError(f"{task} labels must be whole numbers, not of type {labels.dtype}")
    if task == "multiclass":
        top = np.inf if classes is None else classes - 1
        wrong = ~((labels >= 0) & (labels <= top) & (labels == np.floor(labels)))
        valid = "0 and above" if classes is None else f"0 to {classes - 1}"
    else:
        wrong, valid = ~np.isin(labels, (-1, 0, 1)), "0 and 1"
    if wrong.any():
        place = np.argwhere(wrong)[0]
        where = f"row {place[0]}" + (f" and column {place[1]}" if len(place) > 1 else "")
        raise UserError(
            f"the label {labels[tuple(place)]} at {where} (from 0) is no class; valid: {valid}"
        )


def _check_numbers(weight_decays: Sequence[float], tol: float) -> None:
    if len(weight_decays) == 0:
        raise UserError("there is no weight decay to solve for")
    for decay in weight_decays:
        if not 0 < decay < np.inf:
            raise UserError(f"weight decays must be above 0 and finite, not {decay}")
    if not 0 < tol < np.inf:
        raise UserError(f"tol must be above 0 and finite, not {tol}")


def widen(point: Point, used: Array, idle: Floats) -> Point:
    """Give a point of the classes `used` rows for all K; the others have intercepts `idle` (K,)."""
    if len(used) == len(idle):
        return point
    weights, intercepts = np.zeros((len(idle), point.weights.shape[1])), idle.copy()
    weights[used], intercepts[used] = point.weights, point.intercepts
    return replace(point, weights=weights, intercepts=intercepts)
