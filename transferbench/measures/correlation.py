"""Correlations of bounded scores on the logit scale (arXiv 2011.13377, appendix A.7)."""

from __future__ import annotations

import numpy as np

from transferbench.measures.metrics import Array, Floats


def logit(shares: Array, *, samples: Array | int | None = None) -> Floats:
    """Return ln(p / (1 - p)) of shares in 0..1, any shape.

    Parameters
    ----------
    shares : array
    samples : int or array, optional
        Number of test images N: shares are clipped to [1 / 2N, 1 - 1 / 2N], so that 0 and 1 stay
        finite.
    """
    p = np.asarray(shares, dtype=np.float64)
    if samples is not None:
        edge = 0.5 / np.asarray(samples, dtype=np.float64)
        p = np.clip(p, edge, 1 - edge)
    with np.errstate(divide="ignore"):
        result: Floats = np.log(p) - np.log1p(-p)
    return result


def pearson(x: Array, y: Array) -> float:
    """Return the correlation of two arrays (N,)."""
    return float(np.corrcoef(np.asarray(x, np.float64), np.asarray(y, np.float64))[0, 1])


def spearman(x: Array, y: Array) -> float:
    """Return the correlation of the ranks of two arrays (N,); ties have their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))
