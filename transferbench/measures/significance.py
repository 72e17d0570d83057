"""Whether two models differ on the same test images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transferbench.measures.metrics import Array


@dataclass(frozen=True)
class PairedBootstrap:
    """Difference of two accuracies (shares) with its 95 % interval and two-sided p value."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class McNemar:
    """Counts of images that one model alone gets right, and the test's p values.

    Attributes
    ----------
    b, c : int
        Images that only the first, and only the second model gets right.
    exact_p : float
        Two-sided, binomial.
    chi2, chi2_p : float
        Statistic with continuity correction, and its upper tail with one degree of freedom.
    """

    b: int
    c: int
    exact_p: float
    chi2: float
    chi2_p: float


def paired_bootstrap(
    correct_a: Array, correct_b: Array, *, seed: int, resamples: int = 1000
) -> PairedBootstrap:
    """Bootstrap the difference of two accuracies over the same images.

    Parameters
    ----------
    correct_a, correct_b : arrays (N,) of 0 and 1
        Whether each image was classified correctly.
    seed : int
        Of `numpy.random.RandomState`.
    resamples : int
        R; each draws N images with replacement, the same for both models.
    """
    gain = np.asarray(correct_a, dtype=np.int64) - np.asarray(correct_b, dtype=np.int64)
    n = len(gain)
    state = np.random.RandomState(seed)
    # Rows drawn one after another are the rows of one (R, N) draw, without its memory.
    sums = np.array([gain[state.randint(0, n, size=n)].sum() for _ in range(resamples)])
    low, high = np.percentile(sums / n, [2.5, 97.5])
    tail = min((sums <= 0).sum() + 1, (sums >= 0).sum() + 1) / (resamples + 1)
    return PairedBootstrap(float(gain.mean()), float(low), float(high), float(min(1.0, 2 * tail)))


def mcnemar(correct_a: Array, correct_b: Array) -> McNemar:
    """Test whether two models err on different images equally often; arrays (N,) of 0 and 1."""
    from scipy.stats import binom, chi2

    a, b = np.asarray(correct_a).astype(bool), np.asarray(correct_b).astype(bool)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    total = only_a + only_b
    if total == 0:
        return McNemar(0, 0, 1.0, 0.0, 1.0)
    exact = min(1.0, 2 * float(binom.cdf(min(only_a, only_b), total, 0.5)))
    statistic = max(abs(only_a - only_b) - 1, 0) ** 2 / total
    return McNemar(only_a, only_b, exact, statistic, float(chi2.sf(statistic, 1)))
