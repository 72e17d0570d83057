"""Balanced soft assignment of samples to prototypes by the Sinkhorn-Knopp algorithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from transferbench.methods.parts.collectives import (
    max_over_processes,
    sum_over_processes,
    world_size,
)
from transferbench.methods.parts.precision import at_least_float32


def _log_sum(x: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Log of the sum of exp(x) over `dim` and over all processes; kept dimensions."""
    largest = max_over_processes(x.amax(dim, keepdim=True))
    return largest + sum_over_processes((x - largest).exp().sum(dim, keepdim=True)).log()


@torch.no_grad()
@at_least_float32
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Turn scores (B, K) into codes (B, K) whose rows sum to 1, prototypes used about equally.

    Q = exp(scores / epsilon), divided by its total; then, `iterations` times, each prototype's
    mass is scaled to 1/K and after it each sample's to 1/B; finally times B (arXiv 2006.09882
    sec. 3; facebookresearch/swav: main_swav.py). Computed on logarithms, so that no epsilon and
    no score overflows or leaves an empty sum. Totals and prototype sums go over the samples of
    all processes, and B counts them all; the sample step is local. No gradient.
    """
    samples, prototypes = scores.shape[0] * world_size(), scores.shape[1]
    log_q = scores / epsilon
    log_q = log_q - _log_sum(log_q, (0, 1))
    for _ in range(iterations):
        log_q = log_q - _log_sum(log_q, (0,)) - math.log(prototypes)
        log_q = log_q - log_q.logsumexp(1, keepdim=True) - math.log(samples)
    return (log_q + math.log(samples)).exp()
