"""Shuffled batch norm: a query and its key never share the images they are normalised with.

A network that is normalised with the same images for query and key can tell the pair by the
statistics. So the keys' images change places first, between processes, and within a process
between groups of images that are normalised apart (arXiv 1911.05722 sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.parts.batch_norm import ReplacingBatchNorm, replace_batch_norm
from transferbench.methods.parts.collectives import (
    from_first_process,
    gather,
    own_rows,
    world_size,
)


def draw_order(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an order of the images (B, ...) of all processes, (world size * B,) int64.

    All processes get the order of rank 0, whatever their generators (on the CPU) say.
    """
    order = torch.randperm(len(images) * world_size(), generator=generator)
    return from_first_process(order.to(images.device))


@torch.no_grad()
def encode_in_order(network: Callable[[Tensor], Tensor], images: Tensor, order: Tensor) -> Tensor:
    """Run a network over all processes' images in another order, and put its outputs back.

    Place p of the shuffled batch holds image `order[p]` of the gathered one; each process encodes
    its slice of places and gets the outputs of its own images.

    Parameters
    ----------
    network : callable
        Images (B, ...) to (B, ...); whatever it normalises over the batch is over a slice.
    images : Tensor (B, ...)
        This process's; as many on each.
    order : Tensor (world size * B,) int64
        The same on all processes.
    """
    outputs = gather(network(gather(images)[own_rows(order)]))
    return outputs[own_rows(order.argsort())]


class SplitBatchNorm(ReplacingBatchNorm):
    """Batch norm of (B, C, ...) that imitates several devices: image i is of group i mod G.

    In training each group is normalised alone, and the running statistics become the mean of what
    each group would have made of them (facebookresearch/moco: colab/moco_cifar10_demo.ipynb). In
    evaluation it is torch's. A batch of fewer than G images has a group for each.
    """

    def __init__(self, num_features: int, *, groups: int, **options: object) -> None:
        super().__init__(num_features, **options)
        self.groups = groups

    def normalize(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...) per group and channel."""
        groups = min(self.groups, len(x))
        if groups < 2 or not self.training:
            return super().normalize(x)
        if not self.track_running_stats:
            return self._normalize_groups(x, groups, None, None, 0.0)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        means, variances = self.running_mean.repeat(groups), self.running_var.repeat(groups)
        normalized = self._normalize_groups(x, groups, means, variances, momentum)
        self.running_mean.copy_(means.view(groups, -1).mean(0))
        self.running_var.copy_(variances.view(groups, -1).mean(0))
        return normalized

    def _normalize_groups(
        self,
        x: Tensor,
        groups: int,
        means: Tensor | None,
        variances: Tensor | None,
        momentum: float,
    ) -> Tensor:
        """Normalise each group, and update running statistics (G * C,) in place."""
        if len(x) % groups:
            return self._normalize_uneven_groups(x, groups, means, variances, momentum)
        # A row of one image of each group: every pair of group and channel is a channel.
        joined = x.reshape(-1, groups * x.shape[1], *x.shape[2:])
        weight = None if self.weight is None else self.weight.repeat(groups)
        bias = None if self.bias is None else self.bias.repeat(groups)
        normalized = F.batch_norm(
            joined, means, variances, weight, bias, True, momentum, self.eps
        ).reshape(x.shape)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return normalized.contiguous(memory_format=torch.channels_last)
        return normalized

    def _normalize_uneven_groups(
        self,
        x: Tensor,
        groups: int,
        means: Tensor | None,
        variances: Tensor | None,
        momentum: float,
    ) -> Tensor:
        normalized = torch.empty_like(x)
        for g in range(groups):
            own = slice(g * x.shape[1], (g + 1) * x.shape[1])
            normalized[g::groups] = F.batch_norm(
                x[g::groups],
                None if means is None else means[own],
                None if variances is None else variances[own],
                self.weight,
                self.bias,
                True,
                momentum,
                self.eps,
            )
        return normalized


def split_batch_norm(module: nn.Module, groups: int) -> nn.Module:
    """Let every batch norm of a module treat G groups of a batch apart; see `SplitBatchNorm`.

    With one group nothing changes. Returns the module itself, or its replacement if it is a batch
    norm.
    """
    if groups == 1:
        return module
    return replace_batch_norm(module, lambda *a, **k: SplitBatchNorm(*a, groups=groups, **k))


def groups_per_process(method: str, context: Context, groups: int) -> int:
    """Return a process's share of the groups over all processes.

    Raises
    ------
    UserError
        If the groups do not divide by the processes, the batch does not divide by the groups, or
        a group has fewer than 2 images: there is nothing to normalise over.
    """
    processes, batch = context.world_size, context.batch_size
    if groups % processes:
        raise UserError(
            f"settings.batch_norm_groups: {groups} groups do not divide by {processes} processes"
        )
    if batch % groups or batch < 2 * groups:
        raise UserError(
            f"batch_size: {method} normalises {groups} groups of images apart "
            f"(settings.batch_norm_groups), so it needs a multiple of {groups} and at least "
            f"{2 * groups} images, not {batch}"
        )
    return groups // processes
