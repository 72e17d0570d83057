"""Features as the solver sees them: centred, in the eigenbasis of their scatter, of length one.

Centring only moves the intercepts, a rotation leaves the penalty as it is, and a common scale is
one of the penalty; but the Hessian of logistic regression is close to diagonal in this basis, and
what no image spans is gone.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from transferbench.measures.metrics import Array

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 1024
"""Images that are converted, rotated or multiplied at once."""


class Span:
    """Images in R coordinates, R = min(N, D).

    Attributes
    ----------
    x : tensor (N, R), float64
        The mean over images of its rows' squared length is 1, if any feature varies at all.
    squares : tensor (R,)
        Sum over images of each squared coordinate.
    mean : tensor (D,)
    basis : tensor (D, R), orthonormal
    scale : float
        features = mean + scale * x basis'.
    """

    def __init__(self, features: Array, device: str) -> None:
        """Turn real features (N, D) of any type, which are left as they are."""
        import torch

        n, d = features.shape
        x = torch.empty(n, d, dtype=torch.float64, device=device)
        for start in range(0, n, ROWS):
            # A copy: torch takes neither read-only memory nor another byte order.
            some = np.array(features[start : start + ROWS], dtype=np.float64)
            x[start : start + ROWS] = torch.from_numpy(some).to(device)
        self.mean = x.mean(dim=0)
        x -= self.mean
        if n < d:
            span, upper = torch.linalg.qr(x.T)
            _, vectors = torch.linalg.eigh(upper @ upper.T)
            self.basis, x = span @ vectors, (upper.T @ vectors).contiguous()
        else:
            _, self.basis = torch.linalg.eigh(x.T @ x)
            for start in range(0, n, ROWS):
                x[start : start + ROWS] = x[start : start + ROWS] @ self.basis
        self.scale = float(torch.linalg.vector_norm(x)) / n**0.5 or 1.0
        self.x = x.div_(self.scale)
        # Not the eigenvalues: those of nearly constant features are mere rounding.
        self.squares = torch.zeros_like(x[0])
        for start in range(0, n, ROWS):
            self.squares += x[start : start + ROWS].square().sum(dim=0)

    @cached_property
    def single(self) -> Tensor:
        """`x` in float32."""
        return self.x.float()

    def scores(self, w: Tensor) -> Tensor:
        """Return W x (P, K, N) of W (P, K, R), in its type."""
        import torch

        p, k, r = w.shape
        x, rows = self._like(w), w.reshape(p * k, r)
        if x is self.x or x.is_cuda:
            return (rows @ x.T).view(p, k, -1)
        # As one product over many images, one in float32 takes half as long again.
        scores = rows.new_empty(p * k, len(x))
        for start in range(0, len(x), ROWS):
            torch.matmul(rows, x[start : start + ROWS].T, out=scores[:, start : start + ROWS])
        return scores.view(p, k, -1)

    def sums(self, values: Tensor) -> Tensor:
        """Return the sums over images of a x' (P, K, R), of a (P, K, N), in its type."""
        p, k, n = values.shape
        return (values.reshape(p * k, n) @ self._like(values)).view(p, k, -1)

    def weights(self, w: Tensor) -> Tensor:
        """Return the weights (K, D) of the features for those of the coordinates, W (K, R)."""
        weights: Tensor = (w @ self.basis.T) / self.scale
        return weights

    def _like(self, values: Tensor) -> Tensor:
        return self.x if values.dtype == self.x.dtype else self.single
