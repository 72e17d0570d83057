"""Bootstrap errors of a metric over the test images, vectorised over resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from transferbench.measures.metrics import (
    RECALL_TOLERANCE,
    Array,
    Floats,
    Form,
    Metric,
    predictions,
)

CHUNK = 4_000_000  # array elements held at once


def bootstrap_error(
    metric: Metric,
    labels: Array,
    outputs: Array,
    *,
    seed: int,
    resamples: int = 1000,
    form: Form = "devkit",
) -> float:
    """Return the standard deviation of a metric over resampled test images.

    Parameters
    ----------
    metric, labels, outputs, form
        As for `metrics.score`; N images. Equal scores count one by one in either form.
    seed : int
        Of the resamples. The images are drawn with replacement, N at a time.
    resamples : int
        Their number.

    Returns
    -------
    float
        In the metric's own unit, divisor `resamples` - 1.
    """
    scores = bootstrap_scores(metric, labels, outputs, seed=seed, resamples=resamples, form=form)
    return float(np.std(scores, ddof=1))


def bootstrap_scores(
    metric: Metric,
    labels: Array,
    outputs: Array,
    *,
    seed: int,
    resamples: int = 1000,
    form: Form = "devkit",
) -> Floats:
    """Return the metric of each resample (R,); parameters as for `bootstrap_error`."""
    labels = np.asarray(labels)
    measure = _by_counts(metric, labels, np.asarray(outputs), form)
    parts = [measure(counts) for counts in _resamples(len(labels), resamples, seed)]
    return np.concatenate(parts)


def _resamples(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image is drawn, (r, N) at a time."""
    generator = np.random.Generator(np.random.PCG64(seed))
    size = max(1, min(resamples, CHUNK // n))
    for start in range(0, resamples, size):
        r = min(size, resamples - start)
        drawn = generator.integers(0, n, size=(r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n)


def _by_counts(
    metric: Metric, labels: Array, outputs: Array, form: Form
) -> Callable[[NDArray[np.int64]], Floats]:
    """Return a function from counts (r, N) to the metric (r,)."""
    if metric == "map11":
        return _mean_average_precision(labels, outputs, form)
    right = (predictions(outputs) == labels).astype(np.float64)
    if metric == "top1":
        return lambda counts: counts @ right / len(labels)
    members = np.eye(int(labels.max()) + 1)[labels]

    def mean_per_class(counts: NDArray[np.int64]) -> Floats:
        size = counts @ members
        recall = np.full_like(size, np.nan)
        np.divide(counts @ (members * right[:, None]), size, out=recall, where=size > 0)
        mean: Floats = np.nanmean(recall, axis=1)
        return mean

    return mean_per_class


def _mean_average_precision(
    labels: Array, scores: Array, form: Form
) -> Callable[[NDArray[np.int64]], Floats]:
    orders = np.argsort(-scores, axis=0, kind="stable").T
    positives = np.take_along_axis(labels, orders.T, axis=0).T > 0
    # What the devkit leaves out, as `average_precision_11` has it.
    counted = (labels != 0) | (labels.min(axis=0) >= 0) | (form == "code")
    levels = np.linspace(0, 1, 11) - (RECALL_TOLERANCE if form == "devkit" else 0.0)

    # An image drawn twice stands at two ranks in a row; only the last can hold the precision that
    # counts, so one point an image is exact.
    def mean_average_precision(counts: NDArray[np.int64]) -> Floats:
        values = np.full((len(counts), len(orders)), np.nan)
        for k, (order, positive) in enumerate(zip(orders, positives, strict=True)):
            drawn = counts[:, order] * counted[order, k]
            found = np.cumsum(drawn * positive, axis=1)
            precision = found / np.maximum(np.cumsum(drawn, axis=1), 1)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            total = found[:, -1:]
            # Recall t is reached by the first rank with `found` at or above t * total.
            points = np.zeros((len(counts), len(levels)))
            for i, level in enumerate(levels):
                first = (found < level * total).sum(axis=1)
                points[:, i] = best[np.arange(len(counts)), first]
            if form == "code":
                points[:, 0] = 1.0
            with_positive = total[:, 0] > 0
            values[with_positive, k] = points[with_positive].mean(axis=1)
        mean: Floats = np.nanmean(values, axis=1)
        return mean

    return mean_average_precision
