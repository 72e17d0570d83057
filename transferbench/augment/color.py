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
    count = order.shape[1]
    steps = torch.arange(count, device=order.device)
    turn = torch.where(order == JITTERS.index("hue"), steps, count).amin(1)
    active = (order[:, 0] >= 0).nonzero().squeeze(1)
    # Sorted by the step of their hue, images share it: every image's earlier operations come
    # first, then the hue of all, then the later operations, and each time a slice is meant.
    active = active[turn[active].argsort(stable=True)]
    before = torch.searchsorted(turn[active], steps, right=True).tolist()
    there = active.to(images.device)
    part = images.index_select(0, there)
    kinds = order[active].T.to(images.device)
    amounts = {name: amount[active].to(part) for name, amount in amounts.items()}
    blends = _Blends(kinds, amounts, settings)
    for step in range(count):
        blends.apply(part, step, before[step], len(part))
    if "hue" in amounts:
        part = hue(part, amounts["hue"])
    for step in range(1, count):
        blends.apply(part, step, 0, before[step - 1])
    return images.index_copy_(0, there, part)


class _Blends:
    """Brightness, contrast and saturation, mixed in one batch.

    Each is clip(f * x + (1 - f) * target) with the target 0, a mean, or the pixel's luma, or
    clip(x + delta); so one pass serves the images of a step, whichever it is for each, and f = 1
    leaves an image as it is.

    Parameters
    ----------
    kinds : Tensor (K, N) int64
        Position in JITTERS of each step and image.
    amounts : mapping of str to Tensor (N,)
        As `jitter` gets them.
    settings : JitterSettings
    """

    def __init__(
        self, kinds: Tensor, amounts: Mapping[str, Tensor], settings: JitterSettings
    ) -> None:
        self.settings = settings
        self.hsv: tuple[Tensor, Tensor] | None = None
        self.constant = self.of_mean = self.of_luma = None
        some = next(iter(amounts.values()))
        factor = torch.ones(kinds.shape, dtype=some.dtype, device=some.device)

        def now(name: str) -> Tensor:
            return kinds == JITTERS.index(name)

        def shaped(coefficient: Tensor) -> Tensor:
            return coefficient.view(*kinds.shape, 1, 1, 1)

        for name in ("brightness", "contrast", "saturation"):
            if name not in amounts:
                continue
            if name == "brightness" and settings.brightness_mode == "add":
                self.constant = shaped(now(name) * amounts[name])
            elif name == "saturation" and settings.saturation_mode == "hsv":
                self.hsv = (now(name), amounts[name])
            else:
                factor = torch.where(now(name), amounts[name], factor)
        if "contrast" in amounts:
            self.of_mean = shaped((1 - factor) * now("contrast"))
        if "saturation" in amounts and self.hsv is None:
            self.of_luma = shaped((1 - factor) * now("saturation"))
        self.factor = shaped(factor)

    def apply(self, images: Tensor, step: int, start: int, stop: int) -> None:
        """Do a step for the images `start:stop` (B, 3, H, W), in place."""
        if start == stop:
            return
        part = images[start:stop]
        if self.hsv is not None:
            chosen = self.hsv[0][step, start:stop].nonzero().squeeze(1)
            factor = self.hsv[1][start:stop][chosen]
            part.index_copy_(0, chosen, saturation_hsv(part.index_select(0, chosen), factor))
        gray_mean = self.of_mean is not None and self.settings.contrast_mode == "gray-mean"
        offset: Tensor | None = None
        if gray_mean or self.of_luma is not None:
            luma = gray(part).unsqueeze(1)
        if self.of_mean is not None:
            mean = (luma if gray_mean else part).mean((-2, -1), keepdim=True)
            offset = mean * self.of_mean[step, start:stop]
        if self.constant is not None:
            constant = self.constant[step, start:stop]
            offset = constant if offset is None else offset + constant
        if self.of_luma is not None:
            luma.mul_(self.of_luma[step, start:stop])
            offset = luma if offset is None else luma + offset
        part.mul_(self.factor[step, start:stop])
        if offset is not None:
            part.add_(offset)
        part.clamp_(0, 1)


def _each(parameter: Tensor, images: Tensor) -> Tensor:
    """Shape (B,) parameters to broadcast over (B, 3, H, W)."""
    return parameter.to(images).view(-1, 1, 1, 1)
