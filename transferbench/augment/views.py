"""From a batch of uint8 images to the views of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from transferbench.augment import color, filters, geometry
from transferbench.augment.settings import Normalization, ViewSettings
from transferbench.errors import UserError

ATTEMPTS = 10
"""Boxes drawn for a random resized crop before the central one is taken."""

CHUNK_PIXELS = 2**17
"""Pixels worked on at once: 128 images of 32 px, so that they stay in the processor's cache."""


class MultiView:
    """Makes every view of a batch, with an own random draw for each image and view.

    Parameters
    ----------
    views : sequence of ViewSettings
        As in a recipe; an entry with `count` n gives n views.
    normalization : Normalization
        Applied at the end.

    Attributes
    ----------
    sizes : tuple of int
        Side of each view, counts expanded.
    """

    def __init__(self, views: Sequence[ViewSettings], normalization: Normalization) -> None:
        self.views = tuple(view for view in views for _ in range(view.count))
        self.normalization = normalization
        self.sizes = tuple(view.size for view in self.views)

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return one tensor a view.

        Parameters
        ----------
        images : Tensor (B, H, W, 3) uint8
            On any device.
        generator : torch.Generator
            Its state alone decides the views, bit for bit. On the CPU it serves images on an
            accelerator too, without waiting for it.

        Returns
        -------
        tuple of Tensor (B, 3, S, S) float32
            Normalised, channels last, on the images' device.

        Raises
        ------
        UserError
            If a view's padded cut is larger than the padded images.
        """
        count, height, width, _ = images.shape
        outputs = [_empty(count, size, images.device) for size in self.sizes]
        largest = max(height * width, *(size * size for size in self.sizes))
        chunk = max(1, CHUNK_PIXELS // largest) if images.device.type == "cpu" else count
        for start in range(0, count, max(chunk, 1)):
            part = unit_range(images[start : start + chunk])
            for view, output in zip(self.views, outputs, strict=True):
                made = make_view(part, view, generator)
                output[start : start + chunk] = _normalize(made, self.normalization)
        return tuple(outputs)


def unit_range(images: Tensor) -> Tensor:
    """Turn (B, H, W, 3) uint8 into contiguous (B, 3, H, W) float32 in [0, 1]."""
    planes = images.permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def plain_view(images: Tensor, size: int, normalization: Normalization) -> Tensor:
    """Return the images without augmentation: shorter side to `size`, centre cut, normalised.

    images (B, H, W, 3) uint8 give (B, 3, size, size) float32, channels last; resizing is
    antialiased bilinear.
    """
    output = _empty(len(images), size, images.device)
    largest = max(images.shape[1] * images.shape[2], size * size)
    chunk = max(1, CHUNK_PIXELS // largest) if images.device.type == "cpu" else len(images)
    for start in range(0, len(images), max(chunk, 1)):
        part = _central(unit_range(images[start : start + chunk]), size)
        output[start : start + chunk] = _normalize(part, normalization)
    return output


def _empty(count: int, size: int, device: torch.device) -> Tensor:
    return torch.empty(count, 3, size, size, device=device, memory_format=torch.channels_last)


def _normalize(images: Tensor, normalization: Normalization) -> Tensor:
    mean = images.new_tensor(normalization.mean).view(1, 3, 1, 1)
    std = images.new_tensor(normalization.std).view(1, 3, 1, 1)
    return (images - mean).div_(std)


def make_view(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    """Draw and apply one view's operations in the view's order.

    images (B, 3, H, W) floats in [0, 1], left as they are, give (B, 3, S, S) in [0, 1].
    """
    used = view.used()
    made = images
    for name in view.order:
        if name in used:
            made = _OPERATIONS[name](made, view, generator)
    return made


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, device=generator.device, dtype=torch.float64)


def _between(low: float, high: float, generator: torch.Generator, count: int) -> Tensor:
    return low + (high - low) * _uniform(generator, count)


def _integers(below: int, generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(below, (count,), generator=generator, device=generator.device)


def _some(
    images: Tensor,
    p: float,
    generator: torch.Generator,
    change: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Change each image with probability p, in place; `change` gets (images, their positions)."""
    chosen = (_uniform(generator, len(images)) < p).nonzero().squeeze(1)
    there = chosen.to(images.device)
    return images.index_copy_(0, there, change(images.index_select(0, there), chosen))


def _central(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    if height == width == size:
        return images.clone()
    box = geometry.central_box(height, width)
    boxes = geometry.Boxes(*(torch.full((len(images),), side) for side in box))
    return geometry.crop_resize(images, boxes, size)


def _cut(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    if view.crop is not None:
        crop = view.crop
        uniforms = _uniform(generator, count, ATTEMPTS, 4)
        boxes = geometry.random_boxes(height, width, uniforms, scale=crop.scale, ratio=crop.ratio)
        return geometry.crop_resize(images, boxes, view.size, interpolation=crop.interpolation)
    if view.pad_crop is None:
        return _central(images, view.size)
    padding = view.pad_crop.padding
    room = min(height, width) + 2 * padding - view.size
    if room < 0:
        raise UserError(
            f"a view of {view.size} px cannot be cut from images of {width} x {height} px padded "
            f"by {padding}; give it a smaller 'size' or a larger 'padding'"
        )
    top = _integers(height + 2 * padding - view.size + 1, generator, count)
    left = _integers(width + 2 * padding - view.size + 1, generator, count)
    return geometry.pad_and_cut(images, top, left, view.size, padding=padding)


def _flip(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    return _some(images, view.flip, generator, lambda part, _: geometry.flip(part))


def _rotate(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    turns = 1 + _integers(3, generator, len(images))
    turned = _uniform(generator, len(images)) < view.rotate
    for turn in (1, 2, 3):
        chosen = ((turns == turn) & turned).nonzero().squeeze(1).to(images.device)
        images[chosen] = geometry.quarter_turns(images[chosen], turn)
    return images


def _jitter(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    settings = view.jitter
    assert settings is not None
    count = len(images)
    amounts = {}
    for name in color.JITTERS:
        strength: float = getattr(settings, name)
        if strength == 0:
            continue
        if name == "hue" or (name == "brightness" and settings.brightness_mode == "add"):
            amounts[name] = _between(-strength, strength, generator, count)
        else:
            amounts[name] = _between(max(0.0, 1 - strength), 1 + strength, generator, count)
    positions = torch.tensor([color.JITTERS.index(name) for name in amounts], dtype=torch.int64)
    order = positions.to(generator.device)[_uniform(generator, count, len(amounts)).argsort(1)]
    order[_uniform(generator, count) >= settings.p] = -1
    return color.jitter(images, order, amounts, settings)


def _grayscale(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    return _some(images, view.grayscale, generator, lambda part, _: color.grayscale(part))


def _blur(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    settings = view.blur
    assert settings is not None
    sigma = _between(*settings.sigma, generator, len(images))
    size = view.size // 10 if settings.size is None else settings.size

    def change(part: Tensor, chosen: Tensor) -> Tensor:
        return filters.blur(part, sigma[chosen], size, padding=settings.padding)

    return _some(images, settings.p, generator, change)


def _solarize(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    return _some(images, view.solarize, generator, lambda part, _: color.solarize(part))


def _sobel(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    return _some(images, view.sobel, generator, lambda part, _: filters.sobel_magnitude(part))


def _noise(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    settings = view.noise
    assert settings is not None
    noise = torch.randn(images.shape, generator=generator, device=generator.device)

    def change(part: Tensor, chosen: Tensor) -> Tensor:
        return part.add(noise[chosen].to(part), alpha=settings.std).clamp_(0, 1)

    return _some(images, settings.p, generator, change)


def _cutout(images: Tensor, view: ViewSettings, generator: torch.Generator) -> Tensor:
    settings = view.cutout
    assert settings is not None
    row = _integers(view.size, generator, len(images))
    column = _integers(view.size, generator, len(images))

    def change(part: Tensor, chosen: Tensor) -> Tensor:
        return geometry.cutout(part, row[chosen], column[chosen], settings.length)

    return _some(images, settings.p, generator, change)


_OPERATIONS: dict[str, Callable[[Tensor, ViewSettings, torch.Generator], Tensor]] = {
    "crop": _cut,
    "flip": _flip,
    "rotate": _rotate,
    "jitter": _jitter,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
    "sobel": _sobel,
    "noise": _noise,
    "cutout": _cutout,
}
