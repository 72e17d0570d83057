"""Balanced soft assignment of samples to prototypes by the Sinkhorn-Knopp algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from transferbench.methods.parts.collectives import (
    max_over_processes,
    sum_over_processes,
    world_size,
)


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Turn scores (B, K) into codes (B, K) whose rows sum to 1, prototypes used about equally.

    Q = exp(scores / epsilon), divided by its total; then, `iterations` times, each prototype's
    mass is scaled to 1/K and after it each sample's to 1/B; finally times B (arXiv 2006.09882
    sec. 3; facebookresearch/swav: main_swav.py). Totals and prototype sums go over the samples of
    all processes, and B counts them all; the sample step is local. No gradient.

    The largest score is subtracted first, which the total divides out again, and the exponentials
    are taken in float64 whatever the scores are: of cosines none vanishes down to an epsilon of
    0.003, where float32 loses whole samples from 0.02 on. (Logarithms throughout would keep even
    those, but give other codes than the definition in float64 once an exponential does vanish.)
    """
    samples, prototypes = len(scores) * world_size(), scores.shape[1]
    wide = scores if scores.device.type == "mps" else scores.double()
    q = ((wide - max_over_processes(wide.max())) / epsilon).exp()
    q = q / sum_over_processes(q.sum())
    for _ in range(iterations):
        q = q / (_positive(sum_over_processes(q.sum(0))) * prototypes)
        q = q / (_positive(q.sum(1, keepdim=True)) * samples)
    codes = q * samples
    return codes.to(torch.promote_types(scores.dtype, torch.float32))


def _positive(mass: Tensor) -> Tensor:
    """A mass of zero divides only zeros: any other number keeps them from becoming NaN."""
    return mass.masked_fill(mass == 0, 1.0)
