"""Colour operations on batches, every image with parameters of its own.

Images are (B, 3, H, W) floats in [0, 1]; a parameter is a tensor (B,). Results are clipped to
[0, 1]. Colour jitter has two families: torchvision's (pytorch/vision:
torchvision/transforms/functional_tensor.py) and that of the TensorFlow codes of SimCLR and BYOL
(google-research/simclr: data_util.py; google-deepmind/deepmind-research:
byol/utils/augmentations.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from transferbench.augment.settings import JitterSettings

JITTERS = ("brightness", "contrast", "saturation", "hue")
"""The four operations of colour jitter; `jitter` takes their positions here as an order."""

# Keeps divisions finite where all channels are equal; the quotient is then multiplied by 0.
TINY = 1e-30


def gray(images: Tensor) -> Tensor:
    """Return the luma (..., H, W) of images (..., 3, H, W).

    Floats: 0.2989 R + 0.587 G + 0.114 B. uint8: Pillow's
    (19595 R + 38470 G + 7471 B + 32768) >> 16.
    """
    if images.dtype == torch.uint8:
        red, green, blue = images.int().unbind(-3)
        return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)
    red, green, blue = images.unbind(-3)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def grayscale(images: Tensor) -> Tensor:
    """Return images whose three channels are all the luma."""
    return gray(images).unsqueeze(-3).expand_as(images)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by a shift (B,) in turns of the colour circle, at most 0.5 either way.

    Without branches. Let h in [-3, 3] be the hue in sixths of a turn, red at 0, and w_c in [0, 1]
    a channel's height above the lowest as a share of the spread. Going through the six sectors
    shows |h| = 1 + w_g + w_b - w_r, with the sign of g - b; and back, w_c = 2 - distance on the
    circle from h to the channel's own hue (0, 2, -2), clipped to [0, 1].
    """
    red, green, blue = images.unbind(-3)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    spread = torch.maximum(torch.maximum(red, green), blue).sub_(lowest)
    angle = (green - red).add_(blue - lowest).div_(spread.clamp_min(TINY)).add_(1)
    angle.copysign_(green - blue)
    own = images.new_tensor((0.0, 2.0, -2.0)).view(1, 3, 1, 1)
    away = angle.unsqueeze(-3) + (_each(6 * shift, images) - own)
    # 3 - distance on a circle of length 6, for angles within 12 of 0.
    away.abs_().sub_(6).abs_().sub_(3).abs_()
    weight = away.sub_(1).clamp_(0, 1)
    return weight.mul_(spread.unsqueeze(-3)).add_(lowest.unsqueeze(-3)).clamp_(0, 1)


def saturation_hsv(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the saturation of HSV by a factor (B,), at most up to 1.

    Value and hue stay, so every channel keeps its share of the distance below the largest.
    """
    largest = images.amax(-3, keepdim=True)
    spread = largest - images.amin(-3, keepdim=True)
    # The saturation is spread / largest: this factor brings it to 1.
    limit = largest / spread.clamp_min_(TINY)
    scale = torch.minimum(limit, _each(factor, images))
    return (largest - (largest - images).mul_(scale)).clamp_(0, 1)


def solarize(images: Tensor, threshold: float | None = None) -> Tensor:
    """Invert the values of at least `threshold`: by default half the range, 0.5 or 128.

    Serves floats in [0, 1] and uint8.
    """
    largest, half = (255, 128) if images.dtype == torch.uint8 else (1, 0.5)
    limit = half if threshold is None else threshold
    return torch.where(images < limit, images, largest - images)


def jitter(
    images: Tensor, order: Tensor, amounts: Mapping[str, Tensor], settings: JitterSettings
) -> Tensor:
    """Apply colour operations to each image in the image's own order, clipping after each.

    Parameters
    ----------
    images : Tensor (B, 3, H, W)
        Changed in place and returned.
    order : Tensor (B, K) int64
        Positions in JITTERS, each at most once; a row of -1 leaves its image alone.
    amounts : mapping of str to Tensor (B,)
        What each operation that `order` names takes: a factor, for hue a shift, for brightness
        in the mode "add" a summand.
    settings : JitterSettings
        Says which member of each family is meant.
    """
    steps = order.shape[1]
    turn = torch.where(
        order == JITTERS.index("hue"), torch.arange(steps, device=order.device), steps
    )
    turn = turn.amin(1)
    active = (order[:, 0] >= 0).nonzero().squeeze(1)
    # Sorted by the step of their hue, images share it: every image's earlier operations come
    # first, then the hue of all, then the later operations, and each time a slice is meant.
    active = active[turn[active].argsort(stable=True)]
    before = [int(n) for n in torch.searchsorted(turn[active], torch.arange(steps), right=True)]
    there = active.to(images.device)
    part = images.index_select(0, there)
    order = order[active].to(images.device)
    amounts = {name: amount[active].to(part) for name, amount in amounts.items()}

    def blend(start: int, stop: int, step: int) -> None:
        if start < stop:
            chosen = {name: amount[start:stop] for name, amount in amounts.items()}
            _blend(part[start:stop], order[start:stop, step], chosen, settings)

    for step in range(steps):
        blend(before[step], len(part), step)
    if "hue" in amounts:
        part = hue(part, amounts["hue"])
    for step in range(1, steps):
        blend(0, before[step - 1], step)
    return images.index_copy_(0, there, part)


def _blend(
    images: Tensor, kinds: Tensor, amounts: Mapping[str, Tensor], settings: JitterSettings
) -> None:
    """Apply to each image the one of brightness, contrast, saturation that `kinds` (B,) says.

    Changes the images in place. Each of the three is clip(f * x + (1 - f) * target), the target
    being 0, the mean luma, or the pixel's luma; so a mixed batch needs one pass instead of three.
    """

    def chosen(name: str) -> Tensor:
        return kinds == JITTERS.index(name)

    scaling = [name for name in ("brightness", "contrast", "saturation") if name in amounts]
    offsets = []
    if "brightness" in amounts and settings.brightness_mode == "add":
        scaling.remove("brightness")
        offsets.append(_each(amounts["brightness"] * chosen("brightness"), images))
    if "saturation" in amounts and settings.saturation_mode == "hsv":
        scaling.remove("saturation")
        there = chosen("saturation").nonzero().squeeze(1)
        changed = saturation_hsv(images.index_select(0, there), amounts["saturation"][there])
        images.index_copy_(0, there, changed)
    factor = torch.ones_like(kinds, dtype=images.dtype)
    for name in scaling:
        factor = torch.where(chosen(name), amounts[name], factor)
    if "contrast" in scaling:
        target = images.mean((-2, -1), keepdim=True)
        if settings.contrast_mode == "gray-mean":
            # The luma is linear, so its mean is the luma of the channels' means.
            target = gray(target).unsqueeze(1)
        offsets.append(target * _each((1 - factor) * chosen("contrast"), images))
    if "saturation" in scaling:
        share = _each((1 - factor) * chosen("saturation"), images)
        offsets.append(gray(images).unsqueeze(1).mul_(share))
    images.mul_(_each(factor, images))
    if offsets:
        images.add_(sum(offsets[1:], start=offsets[0]))
    images.clamp_(0, 1)


def _each(parameter: Tensor, images: Tensor) -> Tensor:
    """Shape (B,) parameters to broadcast over (B, 3, H, W)."""
    return parameter.to(images).view(-1, 1, 1, 1)
