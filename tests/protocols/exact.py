"""An independent solver for the tests: small problems, whole Hessian, steps measured in longdouble.

Shares no code with the package. Newton's direction only has to point downhill, so float64 serves
for it; objective, gradient and line search have 64 bits of mantissa, so that the minimum is known
to some 1e-17 of itself. The dual bound is that of strong convexity, with what the intercepts'
gradient leaves: J* >= J - ||dJ/dW||^2 / (2 wd) - ||dJ/db|| ||b - b*||.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Long = np.longdouble
FAR = 1e3
"""More than any intercept here is from its optimum."""


@dataclass(frozen=True)
class Exact:
    """W (D, K), b (K,), and what the minimum lies between."""

    weights: Any
    intercepts: Any
    upper: Any
    lower: Any


def value(x, y, w, b, decay, softmax):
    """J of W (D, K), b (K,) for targets y (N, K), in longdouble."""
    z = x.astype(Long) @ w.astype(Long) + b.astype(Long)
    if softmax:
        z = z - (z * y).sum(axis=1, keepdims=True)
        top = z.max(axis=1)
        losses = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    else:
        losses = np.logaddexp(Long(0), (1 - 2 * y.astype(Long)) * z)
    return losses.sum() + Long(decay) / 2 * (w.astype(Long) ** 2).sum()


def solve(x, y, decay, *, softmax, steps=200) -> Exact:
    """Minimize J over targets y (N, K); without softmax K = 1."""
    x = np.asarray(x, dtype=np.float64)
    basis = None
    if x.shape[1] > len(x):
        # The solution lies in the span of the samples.
        basis, upper = np.linalg.qr(x.T)
        x = upper.T
    center = x.mean(axis=0)
    x, y = (x - center).astype(Long), y.astype(Long)
    d, k = x.shape[1], y.shape[1]
    w, b = np.zeros((d, k), Long), np.zeros(k, Long)
    best = _evaluate(x, y, w, b, decay, softmax)
    for _ in range(steps):
        j, p, gw, gb = best
        left = _slack(gw, gb, decay)
        if left <= 1e-16 * j:
            break
        dw, db = _direction(x, p, gw, gb, decay, softmax)
        slope = (gw * dw).sum() + (gb * db).sum()
        step = Long(1)
        for _ in range(60):
            trial = _evaluate(x, y, w + step * dw, b + step * db, decay, softmax)
            fell = trial[0] <= j + Long(1e-4) * step * slope
            # Where J cannot tell any more, the gradient can.
            if fell or (step == 1 and _slack(*trial[2:], decay) < left / 2):
                break
            step /= 2
        if trial[0] >= j and _slack(*trial[2:], decay) >= left / 2:
            break
        w, b, best = w + step * dw, b + step * db, trial
    j, _, gw, gb = best
    lower = j - _slack(gw, gb, decay)
    b = b - center.astype(Long) @ w
    return Exact(w if basis is None else basis.astype(Long) @ w, b, j, lower)


def _slack(gw, gb, decay):
    return (gw**2).sum() / (2 * Long(decay)) + FAR * np.sqrt((gb**2).sum())


def _evaluate(x, y, w, b, decay, softmax):
    z = x @ w + b
    if softmax:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        # A residual p - 1 cancels: it is minus the sum of the other classes.
        own = y > 0
        residual = np.where(own, -(p * ~own).sum(axis=1, keepdims=True), p)
    else:
        p = 1 / (1 + np.exp(-z))
        residual = np.where(y > 0, -1 / (1 + np.exp(z)), p)
    gw, gb = x.T @ residual + Long(decay) * w, residual.sum(axis=0)
    return value(x, y, w, b, decay, softmax), p, gw, gb


def _direction(x, p, gw, gb, decay, softmax):
    (n, d), k = x.shape, p.shape[1]
    x1 = np.concatenate([x, np.ones((n, 1), Long)], axis=1).astype(np.float64)
    p = p.astype(np.float64)
    hessian = np.zeros((k, d + 1, k, d + 1))
    for a in range(k):
        for c in range(k if softmax else 1):
            curvature = p[:, a] * ((a == c) - p[:, c])
            hessian[a, :, c] = (x1 * curvature[:, None]).T @ x1
        hessian[a, :d, a, :d] += decay * np.eye(d)
    g = np.concatenate([gw, gb[None]]).astype(np.float64).T.reshape(-1)
    hessian = hessian.reshape(len(g), len(g))
    scale = 1 / np.sqrt(np.maximum(hessian.diagonal(), 1e-300))
    values, vectors = np.linalg.eigh(hessian * scale[:, None] * scale)
    # The classes' common intercept changes nothing, and has curvature 0.
    keep = values > 1e-15 * values[-1]
    step = -scale * (vectors[:, keep] @ ((vectors[:, keep].T @ (scale * g)) / values[keep]))
    step = step.reshape(k, d + 1).T.astype(Long)
    return step[:d], step[d]
