"""What the geometry of features tells: rank, spread, alignment, similarity, transferability.

Everything takes arrays (NumPy, or what NumPy can read) with one row an image, is computed in
float64 and returned as a float or a NumPy array.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def _rows(features: ArrayLike, name: str = "features") -> Floats:
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must have the shape (N, D), not {array.shape}")
    return array


def _unit(features: Floats) -> Floats:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Floats = features / np.maximum(norms, 1e-12)
    return unit


def _effective_rank(weights: Floats, eps: float) -> float:
    """Return exp of the entropy of weights brought to sum 1, with `eps` added to each."""
    shares = weights / weights.sum() + eps
    return float(np.exp(-np.sum(shares * np.log(shares))))


def rankme(features: ArrayLike, *, eps: float = 1e-7) -> float:
    """Return the effective rank of features (N, D), between about 1 and min(N, D).

    exp(-sum p ln p) over p = singular values / their sum + eps, not centred. Without any spread
    at all (all zero) it is 0 (arXiv 2210.02885 eq. 1-2).
    """
    values = np.asarray(np.linalg.svd(_rows(features), compute_uv=False), dtype=np.float64)
    return _effective_rank(values, eps) if values.sum() > 0 else 0.0


def feature_std(features: ArrayLike) -> float:
    """Return the mean over dimensions of the standard deviation of unit features (N, D).

    1 / sqrt(D) when they spread evenly over the sphere, 0 when all are equal (arXiv 2011.10566
    sec. 4.1).
    """
    return float(_unit(_rows(features)).std(axis=0).mean())


def usage_entropy(assignments: ArrayLike) -> float:
    """Return how evenly K clusters are used, from 0 (one takes all) to 1 (all alike).

    assignments (N, K), soft or one-hot, not negative: the entropy of their mean over ln K.
    """
    shares = _rows(assignments, "assignments").sum(axis=0)
    if shares.min() < 0 or shares.sum() <= 0:
        raise ValueError("assignments must not be negative, nor all 0")
    if len(shares) == 1:
        return 1.0
    used = shares[shares > 0] / shares.sum()
    # abs: one cluster alone gives -0.0.
    return abs(float(-np.sum(used * np.log(used)))) / math.log(len(shares))


def alignment(x: ArrayLike, y: ArrayLike, *, alpha: float = 2.0) -> float:
    """Return the mean of |x_i - y_i|^alpha over pairs of views, x and y (N, D) of unit rows.

    0 when both views of an image coincide (arXiv 2005.10242).
    """
    distance = np.linalg.norm(_rows(x, "x") - _rows(y, "y"), axis=1)
    return float(np.mean(distance**alpha))


def uniformity(x: ArrayLike, *, t: float = 2.0) -> float:
    """Return ln of the mean of exp(-t |x_i - x_j|^2) over pairs i < j of unit rows x (N, D).

    0 when all coincide; the lower, the more evenly they spread (arXiv 2005.10242).
    """
    rows = _rows(x, "x")
    count = len(rows)
    if count < 2:
        raise ValueError("uniformity needs at least two rows")
    squares = np.sum(rows**2, axis=1)
    total = 0.0
    # In blocks of rows: all pairs at once would need N x N numbers.
    block = max(1, 2**22 // count)
    for start in range(0, count, block):
        part = rows[start : start + block]
        distances = squares[start : start + block, None] + squares[None] - 2 * part @ rows.T
        kernel = np.exp(-t * np.maximum(distances, 0.0))
        later = np.arange(count)[None] > np.arange(start, start + len(part))[:, None]
        total += float(kernel[later].sum())
    return math.log(total / (count * (count - 1) / 2))


def linear_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Return the linear CKA of two feature sets x (N, D), y (N, E) of the same images.

    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred columns: 1 for sets equal up to rotation
    and scale; 0 where one is constant (arXiv 1905.00414 sec. 3).
    """
    first, second = _rows(x, "x"), _rows(y, "y")
    if len(first) != len(second):
        raise ValueError(f"both sets must hold the same images, not {len(first)}, {len(second)}")
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second)
    return float(np.linalg.norm(second.T @ first) ** 2 / scale) if scale > 0 else 0.0


def lidar(views: ArrayLike, *, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """Return the effective rank of what tells images apart rather than views of one image.

    views (N, Q, D): Q >= 2 views of each of N >= 2 images. The eigenvalues of
    Sw^-1/2 Sb Sw^-1/2, with Sb the scatter of the images' means over N - 1 and Sw that of views
    about them over N (Q - 1), plus delta on its diagonal; then as `rankme` (arXiv 2312.04000).
    """
    array = np.asarray(views, dtype=np.float64)
    if array.ndim != 3 or array.shape[0] < 2 or array.shape[1] < 2:
        raise ValueError(f"views must have the shape (N >= 2, Q >= 2, D), not {array.shape}")
    images, per_image, dimensions = array.shape
    centers = array.mean(axis=1)
    between = centers - centers.mean(axis=0)
    within = (array - centers[:, None]).reshape(-1, dimensions)
    scatter_between = between.T @ between / (images - 1)
    scatter_within = within.T @ within / (images * (per_image - 1)) + delta * np.eye(dimensions)
    values, vectors = np.linalg.eigh(scatter_within)
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    spectrum = np.linalg.eigvalsh(whiten @ scatter_between @ whiten)
    # Rounding can leave an eigenvalue of 0 slightly negative.
    spectrum = np.maximum(spectrum, 0.0)
    return _effective_rank(spectrum, eps) if spectrum.sum() > 0 else 0.0


def logme(features: ArrayLike, labels: ArrayLike, *, classes: int | None = None) -> float:
    """Return the mean log evidence per image of linear models from features (N, D) to classes.

    labels (N,) int from 0. Each class's one-hot column has its own Bayesian linear regression
    without intercept, whose two precisions are found by fixed-point iteration (arXiv 2110.10545;
    thuml/LogME: LogME.py). The higher, the better the features fit the labels.
    """
    rows, targets = _rows(features), np.asarray(labels)
    if targets.shape != (len(rows),):
        raise ValueError(f"labels must have the shape ({len(rows)},), not {targets.shape}")
    count = int(targets.max()) + 1 if classes is None else classes
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    squares = singular**2
    evidences = [
        _log_evidence(left, squares, (targets == kind).astype(np.float64), rows.shape[1])
        for kind in range(count)
    ]
    return float(np.mean(evidences))


def _log_evidence(left: Floats, squares: Floats, target: Floats, dimensions: int) -> float:
    """Return the evidence of one target (N,), over N, given the thin SVD of the features."""
    count = len(target)
    projected = (left.T @ target) ** 2
    outside = float(target @ target - projected.sum())
    alpha = beta = 1.0
    weight = residual = 0.0
    for _ in range(11):
        ratio = alpha / beta
        gamma = float(np.sum(squares / (squares + ratio)))
        weight = float(np.sum(squares * projected / (squares + ratio) ** 2))
        residual = float(np.sum(projected / (1 + squares / ratio) ** 2)) + outside
        alpha = gamma / (weight + 1e-5)
        beta = (count - gamma) / (residual + 1e-5)
        if abs(alpha / beta - ratio) / ratio <= 1e-3:
            break
    evidence: Any = (
        dimensions / 2 * np.log(alpha)
        + count / 2 * np.log(beta)
        - np.sum(np.log(alpha + beta * squares)) / 2
        - beta / 2 * residual
        - alpha / 2 * weight
        - count / 2 * math.log(2 * math.pi)
    )
    return float(evidence) / count
