"""How well confidences match accuracies (arXiv 1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from transferbench.measures.metrics import Array, Floats

Closed = Literal["right", "left"]

SHARPEST = 1e4
"""Largest 1 / T tried: the likelihood of separable logits has no maximum."""


@dataclass(frozen=True)
class FiveFold:
    """Calibration errors before and after scaling on parts of the test set.

    Attributes
    ----------
    unscaled, scaled : float
        Expected calibration errors, shares.
    temperatures, errors : tuple of float
        Per part: the T fitted on it, and the error of the other parts.
    """

    unscaled: float
    scaled: float
    temperatures: tuple[float, ...]
    errors: tuple[float, ...]


def softmax(logits: Array) -> Floats:
    """Return the probabilities of logits (N, K)."""
    logits = np.asarray(logits, dtype=np.float64)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Floats = raised / raised.sum(axis=1, keepdims=True)
    return result


def negative_log_likelihood(logits: Array, labels: Array) -> float:
    """Return the mean of -ln softmax(logits)[label] for logits (N, K) and labels (N,)."""
    logits = np.asarray(logits, dtype=np.float64)
    own = np.take_along_axis(logits, np.asarray(labels)[:, None], axis=1)
    top = (logits - own).max(axis=1, keepdims=True)
    return float(np.mean(top[:, 0] + np.log(np.exp(logits - own - top).sum(axis=1))))


def expected_calibration_error(
    confidence: Array, correct: Array, *, bins: int = 15, closed: Closed = "right"
) -> float:
    """Return the mean gap of accuracy and confidence over equal bins, weighted by their size.

    Parameters
    ----------
    confidence : array (N,)
        Largest class probability.
    correct : array (N,) of 0 and 1
    bins : int
        Equal bins on [0, 1].
    closed : {"right", "left"}
        "right": (low, high], so that 0 falls in none; "left": [low, high), the last one closed, as
        netcal does.

    Returns
    -------
    float
        A share, not per cent.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    edges = np.linspace(0, 1, bins + 1)
    side: Literal["left", "right"] = "left" if closed == "right" else "right"
    place = np.searchsorted(edges, confidence, side=side) - 1
    if closed == "left":
        place = np.minimum(place, bins - 1)
    inside = place >= 0
    gap = np.where(inside, np.asarray(correct, dtype=np.float64) - confidence, 0.0)
    sums = np.bincount(np.maximum(place, 0), weights=gap, minlength=bins)
    return float(np.abs(sums).sum() / len(confidence))


def logits_error(
    logits: Array, labels: Array, *, bins: int = 15, closed: Closed = "right"
) -> float:
    """Return the expected calibration error of softmax(logits) for logits (N, K)."""
    probabilities = softmax(logits)
    correct = probabilities.argmax(axis=1) == np.asarray(labels)
    return expected_calibration_error(probabilities.max(axis=1), correct, bins=bins, closed=closed)


def fit_temperature(logits: Array, labels: Array) -> float:
    """Return the T > 0 that minimises the mean negative log likelihood of softmax(logits / T).

    Parameters
    ----------
    logits : array (N, K)
    labels : array (N,)

    Returns
    -------
    float
        At least 1e-4, which is neared where every largest logit is the label's and there is no
        minimum; infinity where the logits are no better than none.
    """
    logits = np.asarray(logits, dtype=np.float64)
    own = np.take_along_axis(logits, np.asarray(labels)[:, None], axis=1)[:, 0]

    # The loss is convex in 1 / T; these are its derivative and curvature there.
    def slope(sharpness: float) -> tuple[float, float]:
        probabilities = softmax(sharpness * logits)
        mean = (probabilities * logits).sum(axis=1)
        spread = (probabilities * logits**2).sum(axis=1) - mean**2
        return float(np.mean(mean - own)), float(np.mean(spread))

    if slope(0.0)[0] >= 0:
        return float("inf")
    low, high = 0.0, 1.0
    while slope(high)[0] < 0 and high < SHARPEST:
        low, high = high, 2 * high
    if slope(high)[0] < 0:
        return 1 / SHARPEST
    # Newton's steps within the bracket: SciPy's root finders take half a second to import. Near
    # the root rounding decides, so that the steps are counted too.
    sharpness = high
    for _ in range(100):
        last = sharpness
        value, curvature = slope(last)
        low, high = (last, high) if value < 0 else (low, last)
        step = last - value / curvature if curvature > 0 else low
        sharpness = step if low <= step <= high else (low + high) / 2
        if abs(sharpness - last) <= 1e-14 * last:
            break
    return 1 / sharpness


def five_fold(
    logits: Array, labels: Array, *, bins: int = 15, folds: int = 5, seed: int = 0
) -> FiveFold:
    """Scale on one part of the test set and measure on the others, as the transfer paper does.

    Rule of linusericsson/ssl-transfer: temperature_scaling.py, which reads test labels; bins are
    closed on the left.

    Parameters
    ----------
    logits : array (N, K)
    labels : array (N,)
    bins, folds, seed : int
        Bins of the error; number of equal parts (a remainder is dropped); seed of the shuffle.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    order = np.arange(len(labels))
    np.random.RandomState(seed).shuffle(order)
    size = len(labels) // folds
    parts = [order[i * size : (i + 1) * size] for i in range(folds)]
    temperatures = [fit_temperature(logits[part], labels[part]) for part in parts]
    errors = []
    for i, temperature in enumerate(temperatures):
        rest = np.concatenate([part for j, part in enumerate(parts) if j != i])
        errors.append(
            logits_error(logits[rest] / temperature, labels[rest], bins=bins, closed="left")
        )
    return FiveFold(
        unscaled=logits_error(logits, labels, bins=bins, closed="left"),
        scaled=float(np.mean(errors)),
        temperatures=tuple(temperatures),
        errors=tuple(errors),
    )
