"""Batch norm without scale and shift that belongs to a loss: statistics apart from their use."""

from __future__ import annotations

import torch
from torch import Tensor

from transferbench.methods.parts.collectives import rank, sum_over_processes, world_size
from transferbench.methods.parts.precision import at_least_float32


@at_least_float32
def norm_statistics(logits: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each class, (G, C) each, over all crops of a group.

    Groups are consecutive runs of `images` images, or of the whole batch if it is smaller,
    process after process; a group may be a part of this process's logits (B, V, C) or span
    processes (bytedance/TWIST: train.py, "bunch").
    """
    batch = len(logits) * world_size()
    size = min(images, batch)
    rows = logits.reshape(-1, min(size, len(logits)) * logits.shape[1], logits.shape[2])
    count = size * logits.shape[1]
    groups, own = batch // size, rank() * len(logits) // size

    def total(local: Tensor) -> Tensor:
        if size <= len(logits):
            return local
        parts = [local if group == own else torch.zeros_like(local) for group in range(groups)]
        return sum_over_processes(torch.stack(parts))[own]

    mean = total(rows.sum(1)) / count
    return mean, total((rows - mean[:, None]).square().sum(1)) / count


@at_least_float32
def normalize(logits: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    """Standardize logits (B, V, C) by the statistics (G, C) of G groups of equally many images."""
    groups = logits.reshape(len(mean), -1, logits.shape[-1])
    scaled = (groups - mean[:, None]) * (variance[:, None] + epsilon).rsqrt()
    return scaled.reshape(logits.shape)
