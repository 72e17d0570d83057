"""Colour operations on batches, every image with parameters of its own.

Images are (B, 3, H, W) floats in [0, 1]; a parameter is a tensor (B,). Results are clipped to
[0, 1]. The plain members of a family are torchvision's (pytorch/vision:
torchvision/transforms/functional_tensor.py); `brightness_add`, `contrast_channels` and
`saturation_hsv` are those of the TensorFlow codes of SimCLR and BYOL (google-research/simclr:
data_util.py; google-deepmind/deepmind-research: byol/utils/augmentations.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from transferbench.augment.settings import JitterSettings

JITTERS = ("brightness", "contrast", "saturation", "hue")
"""The four operations of colour jitter; `jitter` takes their positions here as an order."""

# Keeps divisions finite where all channels are equal; the quotient is then multiplied by 0.
TINY = 1e-30


def _each(parameter: Tensor, images: Tensor) -> Tensor:
    """Shape (B,) parameters to broadcast over (B, 3, H, W)."""
    return parameter.to(images).view(-1, 1, 1, 1)


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


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by a factor (B,)."""
    return (images * _each(factor, images)).clamp_(0, 1)


def brightness_add(images: Tensor, delta: Tensor) -> Tensor:
    """Add a summand (B,)."""
    return (images + _each(delta, images)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale by a factor (B,) about the mean luma of each image."""
    factor = _each(factor, images)
    # The luma is linear, so its mean is the luma of the channels' means.
    mean = gray(images.mean((-2, -1), keepdim=True)).unsqueeze(-3)
    return (images * factor).add_((1 - factor) * mean).clamp_(0, 1)


def contrast_channels(images: Tensor, factor: Tensor) -> Tensor:
    """Scale by a factor (B,) about the mean of each channel."""
    factor = _each(factor, images)
    mean = images.mean((-2, -1), keepdim=True)
    return (images * factor).add_((1 - factor) * mean).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from each pixel's luma by a factor (B,)."""
    factor = _each(factor, images)
    luma = gray(images).unsqueeze(-3).mul_(1 - factor)
    return (images * factor).add_(luma).clamp_(0, 1)


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


def solarize(images: Tensor, threshold: float | None = None) -> Tensor:
    """Invert the values of at least `threshold`: by default half the range, 0.5 or 128.

    Serves floats in [0, 1] and uint8.
    """
    largest, half = (255, 128) if images.dtype == torch.uint8 else (1, 0.5)
    limit = half if threshold is None else threshold
    return torch.where(images < limit, images, largest - images)


def operations(settings: JitterSettings) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return the member of each family that the settings' modes name, by the names of JITTERS."""
    return {
        "brightness": brightness if settings.brightness_mode == "multiply" else brightness_add,
        "contrast": contrast if settings.contrast_mode == "gray-mean" else contrast_channels,
        "saturation": saturation if settings.saturation_mode == "blend" else saturation_hsv,
        "hue": hue,
    }


def jitter(
    images: Tensor, order: Tensor, amounts: Mapping[str, Tensor], settings: JitterSettings
) -> Tensor:
    """Apply colour operations to each image in the image's own order, clipping after each.

    Parameters
    ----------
    images : Tensor (B, 3, H, W)
        Changed in place and returned.
    order : Tensor (B, K) int64
        Positions in JITTERS; a negative one does nothing.
    amounts : mapping of str to Tensor (B,)
        Factor or shift of each operation that `order` names.
    settings : JitterSettings
        Says which member of each family is meant.
    """
    families = operations(settings)
    for column in order.unbind(1):
        for position, name in enumerate(JITTERS):
            if name not in amounts:
                continue
            chosen = (column == position).nonzero().squeeze(1)
            if len(chosen):
                amount = amounts[name][chosen].to(images)
                chosen = chosen.to(images.device)
                changed = families[name](images.index_select(0, chosen), amount)
                images.index_copy_(0, chosen, changed)
    return images
