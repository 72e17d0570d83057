"""Whether two models differ on the same test images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transferbench.measures.metrics import Array, Floats


@dataclass(frozen=True)
class PairedBootstrap:
    """Difference of two scores (shares) with its 95 % interval and two-sided p value."""

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
    correct_a, correct_b : arrays (N,) of 0 and 1, or of shares
        Whether each image was classified correctly; or the accuracy of each episode.
    seed : int
        Of `numpy.random.RandomState`.
    resamples : int
        R; each draws N images with replacement, the same for both models.
    """
    gain = np.asarray(correct_a, dtype=np.float64) - np.asarray(correct_b, dtype=np.float64)
    n = len(gain)
    state = np.random.RandomState(seed)
    # Rows drawn one after another are the rows of one (R, N) draw, without its memory.
    sums = np.array([gain[state.randint(0, n, size=n)].sum() for _ in range(resamples)])
    return from_resamples(float(gain.mean()), sums / n)


def from_resamples(difference: float, resampled: Array) -> PairedBootstrap:
    """Return what resampled differences (R,) say of a difference.

    p is twice the smaller share of resamples at or beyond 0, each share over R + 1 with one more.
    """
    values = np.asarray(resampled, dtype=np.float64)
    low, high = np.percentile(values, [2.5, 97.5])
    tail = min((values <= 0).sum() + 1, (values >= 0).sum() + 1) / (len(values) + 1)
    return PairedBootstrap(difference, float(low), float(high), float(min(1.0, 2 * tail)))


def holm(p_values: Array) -> Floats:
    """Return p values (M,) corrected for their number, as Holm does (1979): at most 1, in order."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


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
