"""K-means of unit vectors by cosine, with the rows spread over processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from transferbench.methods.parts.collectives import from_first_process, sum_over_processes
from transferbench.methods.parts.precision import at_least_float32

BLOCK = 2**24
"""Similarities held at a time: those of a million rows with 3000 centroids do not fit."""


@torch.no_grad()
@at_least_float32
def spherical_kmeans(rows: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Cluster unit rows of all processes; no process sees another's.

    An iteration gives every row to the centroid of the largest dot product; a centroid with
    members moves to their mean, one without stays where it is; all are brought to unit length. A
    last assignment follows (facebookresearch/swav: main_deepclusterv2.py).

    Parameters
    ----------
    rows : Tensor (R, D)
        This process's own; R may differ between processes.
    centroids : Tensor (K, D)
        Where to start. Those of rank 0 count.
    iterations : int

    Returns
    -------
    centroids : Tensor (K, D)
        The same on every process.
    assignments : Tensor (R,) int64
        Of this process's rows.
    """
    centroids = from_first_process(centroids)
    for _ in range(iterations):
        assignments = nearest(rows, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, assignments, rows)
        counts = torch.bincount(assignments, minlength=len(centroids)).to(rows.dtype)
        sums, counts = sum_over_processes(sums), sum_over_processes(counts)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
        centroids = F.normalize(centroids, dim=1)
    return centroids, nearest(rows, centroids)


def nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """Return for rows (R, D) the centroid (K, D) of the largest dot product, (R,) int64."""
    return torch.cat([(block @ centroids.T).argmax(1) for block in blocks(rows, len(centroids))])


def blocks(rows: Tensor, columns: int) -> Iterator[Tensor]:
    """Cut rows (R, ...) into parts that have at most `BLOCK` pairs with as many columns."""
    yield from torch.split(rows, max(BLOCK // columns, 1))
