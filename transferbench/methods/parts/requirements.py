"""What a method demands of the recipe, refused in one sentence before any training."""

from __future__ import annotations

import torch
from torch import nn

from transferbench.backbones.build import first_line
from transferbench.errors import UserError
from transferbench.methods.method import Context


def require_views(method: str, context: Context, count: int, *, one_size: bool = False) -> None:
    """Refuse a recipe whose number of views is not `count`, or whose sizes (pixels) differ."""
    given = len(context.view_sizes)
    if given != count:
        raise UserError(
            f"views: {method} takes exactly {count} view{'s' if count > 1 else ''} of an image, "
            f"but the recipe's [[views]] give {given} (their counts added)"
        )
    if one_size and len(set(context.view_sizes)) > 1:
        sizes = ", ".join(map(str, context.view_sizes))
        raise UserError(
            f"views.size: {method} passes its views through the network together, so they need "
            f"one size, not {sizes} pixels"
        )


def require_batch(method: str, context: Context, least: int) -> None:
    """Refuse a batch that gives a process fewer than `least` images, or an unequal share."""
    if context.batch_size % context.world_size:
        raise UserError(
            f"batch_size: {context.batch_size} images do not divide by "
            f"{context.world_size} processes"
        )
    local = context.batch_size // context.world_size
    if local < least:
        place = " on each process" if context.world_size > 1 else ""
        raise UserError(f"batch_size: {method} needs at least {least} images{place}, not {local}")


def require_image_side(method: str, backbone: nn.Module, side: int, *, key: str) -> None:
    """Refuse a network that cannot take images of `side` pixels, which `key` of the recipe sets."""
    some = next(backbone.parameters(), torch.zeros(()))
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, 3, side, side, dtype=some.dtype, device=some.device))
    # Each architecture checks its input in its own way, or breaks where it does not.
    except Exception as error:
        raise UserError(
            f"{key}: {method} passes patches of {side} px through the network, and this one does "
            f"not take them ({first_line(error)}); take a ResNet, or another size"
        ) from error
    finally:
        backbone.train(was_training)
