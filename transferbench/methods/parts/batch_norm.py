"""Batch norm over the images of all processes, on any device.

torch's SyncBatchNorm refuses CPU tensors; this one needs only an all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferbench.methods.parts.collectives import sum_over_processes, world_size
from transferbench.methods.parts.precision import at_least_float32


@at_least_float32
def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance, (C,) each, of (B, C, ...) over all processes, and their count."""
    dims = [d for d in range(x.ndim) if d != 1]
    count = x.numel() // x.shape[1] * world_size()
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean = sum_over_processes(x.sum(dims)) / count
    # A second exchange, not E[x²] - E[x]², which loses digits where the mean is large.
    variance = sum_over_processes((x - mean.view(shape)).square().sum(dims)) / count
    return mean, variance, count


class ReplacingBatchNorm(_BatchNorm):
    """Batch norm of (B, C, ...) that stands in for another; subclasses define `normalize`.

    `drop` and `act` follow the norm, as in timm's norm layers with an activation; here they are
    the identity unless taken over.
    """

    def __init__(self, num_features: int, **options: object) -> None:
        super().__init__(num_features, **options)  # type: ignore[arg-type]
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), got {input.ndim} dimension(s)")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...) per channel."""
        output: Tensor = self.act(self.drop(self.normalize(input)))
        return output

    def normalize(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...) per channel, as torch does."""
        normalized: Tensor = super().forward(x)
        return normalized


class GlobalBatchNorm(ReplacingBatchNorm):
    """Batch norm of (B, C, ...) whose training statistics cover every process's images.

    On one process, and in evaluation mode, it is torch's.
    """

    def normalize(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...) per channel."""
        if not self.training or world_size() == 1:
            return super().normalize(x)
        return self._normalize_globally(x)

    def _normalize_globally(self, x: Tensor) -> Tensor:
        mean, variance, count = _global_moments(x)
        if self.track_running_stats:
            self._update_running_statistics(mean.detach(), variance.detach(), count)
        shape = [1, -1] + [1] * (x.ndim - 2)
        scale = (variance + self.eps).rsqrt()
        output = (x - mean.view(shape)) * scale.view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(x.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def synchronize_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm in a module by a `GlobalBatchNorm`; see `replace_batch_norm`."""
    return replace_batch_norm(module, GlobalBatchNorm)


def replace_batch_norm(module: nn.Module, make: Callable[..., ReplacingBatchNorm]) -> nn.Module:
    """Replace every batch norm in a module by one of another kind that shares its tensors.

    Parameters, buffers and the names in `state_dict` stay the same objects, so optimizers and
    checkpoints made before or after fit. What has been replaced before is left alone. Returns the
    module itself, or its replacement if it is a batch norm.

    Parameters
    ----------
    module : nn.Module
    make : callable
        The class that replaces, or a function with its arguments.
    """
    if isinstance(module, _BatchNorm) and not isinstance(
        module, ReplacingBatchNorm | nn.SyncBatchNorm
    ):
        replacement = make(
            module.num_features,
            eps=module.eps,
            momentum=module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
            device="meta",
        )
        replacement._parameters.update(module._parameters)
        replacement._buffers.update(module._buffers)
        for follower in ("drop", "act"):
            if isinstance(getattr(module, follower, None), nn.Module):
                setattr(replacement, follower, getattr(module, follower))
        replacement.train(module.training)
        return replacement
    for name, child in module.named_children():
        replaced = replace_batch_norm(child, make)
        if replaced is not child:
            setattr(module, name, replaced)
    return module
