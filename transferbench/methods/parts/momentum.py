"""The key side of momentum contrast: a slowly moving encoder with shuffled batch norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.parts.ema import frozen_copy, update_ema
from transferbench.methods.parts.precision import raise_half
from transferbench.methods.parts.shuffle import draw_order, encode_in_order


class KeyEncoder(nn.Module):
    """A copy of backbone and projector that follows them, with batch-norm statistics of its own.

    Parameters
    ----------
    backbone : nn.Module
        Images (B, 3, S, S) to (B, num_features).
    projector : nn.Module
        (B, num_features) to (B, D).
    momentum : float
        Share of the copy that an update keeps.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, *, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.backbone = frozen_copy(backbone)
        self.projector = frozen_copy(projector)

    def follow(self, backbone: nn.Module, projector: nn.Module) -> None:
        """Move towards the query encoder's parameters."""
        update_ema(self.backbone, backbone, self.momentum)
        update_ema(self.projector, projector, self.momentum)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return unit keys (B, D) of images (B, 3, S, S) in the order given."""
        return unit_rows(self.projector(self.backbone(images)))

    def shuffled(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return unit keys (B, D), encoded in a random order of all processes' images."""
        return encode_in_order(self, images, draw_order(images, generator))


def unit_rows(x: Tensor) -> Tensor:
    """Bring rows (B, D) to unit length, in float32 at least."""
    return F.normalize(raise_half(x), dim=1)


def require_queue(method: str, context: Context, size: int, keys_per_image: int = 1) -> None:
    """Refuse a queue of `size` rows that a step's keys do not divide, as the official codes do."""
    keys = context.batch_size * keys_per_image
    if size % keys:
        raise UserError(
            f"settings.queue_size: {method} replaces {keys} keys a step, so its queue needs a "
            f"multiple of {keys} rows, not {size}"
        )
