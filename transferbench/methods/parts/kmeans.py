"""Plain k-means with restarts, as faiss does it by default (facebookresearch/faiss: Clustering)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.spherical_kmeans import blocks

SPLIT = 1 / 1024
"""Relative distance by which the two halves of a split cluster start apart."""


@dataclass(frozen=True)
class KMeansSearch:
    """How long to look for a clustering.

    Attributes
    ----------
    iterations : int
        Of each start.
    restarts : int
        Starts, of which the one of the smallest sum of squared distances counts.
    points : int
        More rows than this for each cluster are thinned out at random.
    """

    iterations: int = 20
    restarts: int = 5
    points: int = 1000


@torch.no_grad()
@at_least_float32
def kmeans(rows: Tensor, clusters: int, search: KMeansSearch, generator: torch.Generator) -> Tensor:
    """Return the centroids (K, D) of the best of several clusterings of rows (N, D), N >= K.

    Every start is from K different rows, drawn by the generator (on the CPU).
    """
    if len(rows) < clusters:
        raise ValueError(f"{len(rows)} rows do not make {clusters} clusters")
    if len(rows) > clusters * search.points:
        rows = rows[_some(len(rows), clusters * search.points, generator).to(rows.device)]
    found = []
    for _ in range(search.restarts):
        start = rows[_some(len(rows), clusters, generator).to(rows.device)]
        found.append(lloyd(rows, start, search.iterations, generator))
    costs = torch.stack([cost for _, cost in found])
    return found[int(costs.argmin())][0]


@torch.no_grad()
@at_least_float32
def lloyd(
    rows: Tensor, centroids: Tensor, iterations: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Improve centroids (K, D) of rows (N, D): assign every row, move each centroid to its mean.

    Parameters
    ----------
    rows : Tensor (N, D)
    centroids : Tensor (K, D)
    iterations : int
        At least 1.
    generator : torch.Generator, optional
        With it a cluster that is left empty takes half of a large one, drawn in proportion to its
        size; without, an empty cluster keeps its centroid.

    Returns
    -------
    centroids : Tensor (K, D)
    cost : Tensor ()
        Sum of squared distances in the last iteration, before its centroids moved.
    """
    cost = rows.new_zeros(())
    for _ in range(iterations):
        assignments, distances = nearest(rows, centroids)
        cost = distances.sum()
        sums = torch.zeros_like(centroids).index_add_(0, assignments, rows)
        counts = torch.bincount(assignments, minlength=len(centroids))
        means = sums / counts.clamp(min=1)[:, None]
        centroids = torch.where(counts[:, None] > 0, means, centroids)
        if generator is not None:
            _split_for_empty(centroids, counts, generator)
    return centroids, cost


@torch.no_grad()
@at_least_float32
def nearest(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Find each row's (N, D) nearest centroid (K, D), of equals the first.

    Returns
    -------
    assignments : Tensor (N,) int64
    distances : Tensor (N,)
        Squared.
    """
    norms = centroids.square().sum(1)
    assignments = torch.cat(
        [(norms - 2 * block @ centroids.T).argmin(1) for block in blocks(rows, len(centroids))]
    )
    return assignments, (rows - centroids[assignments]).square().sum(1)


def _some(total: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(total, generator=generator)[:count]


def _split_for_empty(centroids: Tensor, counts: Tensor, generator: torch.Generator) -> None:
    """Let each empty cluster start beside a large one, in place."""
    sizes = counts.cpu().double()
    apart = centroids.new_full((centroids.shape[1],), SPLIT)
    apart[1::2] = -SPLIT
    for empty in (sizes == 0).nonzero().flatten().tolist():
        large = int(torch.multinomial((sizes - 1).clamp(min=0), 1, generator=generator))
        centroids[empty] = centroids[large] * (1 + apart)
        centroids[large] *= 1 - apart
        sizes[empty] = (sizes[large] / 2).floor()
        sizes[large] -= sizes[empty]
