"""The metrics of recognition tasks, as shares in 0..1."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Metric = Literal["top1", "mean_per_class", "map11"]

Form = Literal["devkit", "code"]
"""How average precision treats difficult items, ties and recall 0: `average_precision_11`."""

RECALL_TOLERANCE = 1e-9


def score(metric: Metric, labels: Array, outputs: Array, *, form: Form = "devkit") -> float:
    """Return a data set's own metric.

    Parameters
    ----------
    metric : {"top1", "mean_per_class", "map11"}
        Name on the data card.
    labels : array (N,) of class indices, or (N, K) of 0 and 1 for "map11"
    outputs : array (N, K) of scores; for the first two metrics also (N,) of predicted classes
    form : {"devkit", "code"}
        Of the average precision.
    """
    if metric == "map11":
        return mean_average_precision_11(labels, outputs, form=form)
    predicted = predictions(outputs)
    return top1(labels, predicted) if metric == "top1" else mean_per_class(labels, predicted)


def predictions(outputs: Array) -> NDArray[np.int64]:
    """Turn scores (N, K) into classes (N,); equal scores go to the lowest class index."""
    outputs = np.asarray(outputs)
    chosen = outputs.argmax(axis=1) if outputs.ndim == 2 else outputs
    return chosen.astype(np.int64)


def top1(labels: Array, predicted: Array) -> float:
    """Return the share of images (N,) whose predicted class (N,) is the label."""
    return float(np.mean(np.asarray(labels) == np.asarray(predicted)))


def topk(labels: Array, scores: Array, k: int) -> float:
    """Return the share of images with fewer than `k` classes scored above the label's.

    Parameters
    ----------
    labels : array (N,)
    scores : array (N, K)
    """
    scores = np.asarray(scores)
    own = np.take_along_axis(scores, np.asarray(labels)[:, None], axis=1)
    return float(np.mean((scores > own).sum(axis=1) < k))


def per_class(labels: Array, predicted: Array, classes: int) -> Floats:
    """Return the recall of each class (K,); not-a-number for classes absent from the labels."""
    labels = np.asarray(labels)
    right = np.bincount(labels, weights=labels == np.asarray(predicted), minlength=classes)
    count = np.bincount(labels, minlength=classes)
    recall = np.full(len(count), np.nan)
    np.divide(right, count, out=recall, where=count > 0)
    return recall


def mean_per_class(labels: Array, predicted: Array) -> float:
    """Return the mean recall over the classes that the labels hold (arXiv 2011.13377, app. A.2)."""
    labels = np.asarray(labels)
    return float(np.nanmean(per_class(labels, predicted, int(labels.max()) + 1)))


def average_precision_11(
    truth: Array,
    scores: Array,
    *,
    form: Form = "devkit",
    tolerance: float | None = None,
) -> float:
    """Return the eleven-point average precision of one class (PASCAL VOC 2007).

    Mean over the recalls t = 0, 0.1, ..., 1 of the highest precision at a recall of at least t.

    Parameters
    ----------
    truth : array (N,)
        Above 0: positive. 0 among -1 and 1: difficult. Otherwise negative; {0, 1} has no
        difficult items.
    scores : array (N,)
        Higher means more likely positive.
    form : {"devkit", "code"}
        "devkit": every rank is a point, difficult items count as neither. "code": as
        linusericsson/ssl-transfer does by scikit-learn's curve: difficult items are negative, equal
        scores are one point, and recall 0 has precision 1.
    tolerance : float, optional
        By how much a recall may miss t. 0, the code's own, repeats the rounding of a float64
        comparison; the devkit form allows 1e-9.

    Returns
    -------
    float
        Not-a-number where nothing is positive.
    """
    if tolerance is None:
        tolerance = RECALL_TOLERANCE if form == "devkit" else 0.0
    truth, scores = np.asarray(truth), np.asarray(scores, dtype=np.float64)
    difficult = (truth == 0) & (truth.min() < 0) if form == "devkit" else np.zeros(len(truth), bool)
    order = np.argsort(-scores, kind="stable")
    order = order[~difficult[order]]
    positive = truth[order] > 0
    if not positive.any():
        return float("nan")
    found, rank = np.cumsum(positive), np.arange(1, len(order) + 1)
    if form == "code":
        last_of_score = np.append(np.diff(scores[order]) != 0, True)
        found, rank = found[last_of_score], rank[last_of_score]
    precision, recall = found / rank, found / found[-1]
    if form == "code":
        precision, recall = np.append(1.0, precision), np.append(0.0, recall)
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    first = (recall[None, :] < np.linspace(0, 1, 11)[:, None] - tolerance).sum(axis=1)
    return float(np.append(best_from, 0.0)[first].mean())


def average_precisions_11(labels: Array, scores: Array, *, form: Form = "devkit") -> Floats:
    """Return the average precision of each class (K,) for labels and scores (N, K)."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    return np.array(
        [
            average_precision_11(labels[:, k], scores[:, k], form=form)
            for k in range(labels.shape[1])
        ]
    )


def mean_average_precision_11(labels: Array, scores: Array, *, form: Form = "devkit") -> float:
    """Return the mean average precision over the classes that have a positive image."""
    return float(np.nanmean(average_precisions_11(labels, scores, form=form)))
