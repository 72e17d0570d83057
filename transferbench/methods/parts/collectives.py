"""What processes exchange. Without `torch.distributed`, every function is the identity.

All of them assume equally large batches on every process, and serve a loss that is each process's
share of a mean over processes: the engine averages parameter gradients, so a gradient that reaches
an exchanged tensor is summed over processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, counted from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process's loss depends on every process's summand.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum tensors of one shape over all processes; the gradient flows to every summand."""
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x.contiguous())
    return total


def max_over_processes(x: Tensor) -> Tensor:
    """Take the largest value of each element (any shape) over all processes; no gradient."""
    if world_size() == 1:
        return x.detach()
    largest = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def from_first_process(x: Tensor) -> Tensor:
    """Replace a tensor of one shape on all processes by that of rank 0."""
    return sum_over_processes(x if rank() == 0 else torch.zeros_like(x))


def gather(x: Tensor) -> Tensor:
    """Join (B, ...) of all processes to (world size * B, ...), in the order of ranks.

    The gradient flows back to the process that a row came from, summed over the processes that
    used it: a gather without it gives the same loss and another gradient.
    """
    if world_size() == 1:
        return x
    rows: Tensor = _Gather.apply(x.contiguous())
    return rows


def own_rows(x: Tensor) -> Tensor:
    """Return this process's part (B, ...) of what was drawn for all, (world size * B, ...)."""
    return x.chunk(world_size())[rank()]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient (of the parameter's shape) by its mean over processes."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(world_size())
