"""From a batch of uint8 images to the views of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferbench.augment import color, filters, geometry, randaugment
from transferbench.augment.settings import Normalization, ViewSettings
from transferbench.errors import UserError

ATTEMPTS = 10
"""Boxes drawn for a random resized crop before the central one is taken."""

CHUNK_PIXELS = 2**18
"""Pixels worked on at once, 256 images of 32 px: more leaves the cache, fewer is all overhead."""


Operation = Callable[[Tensor, slice], Tensor]
"""Acts on some of a batch's images, (N, 3, H, W) in [0, 1], given their place in the batch."""


@dataclass(frozen=True)
class Source:
    """How many images a batch has, and their size in pixels."""

    count: int
    height: int
    width: int


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
        prepared = [prepare(view, count, height, width, generator) for view in self.views]
        for rows in _chunks(images, *self.sizes):
            part = unit_range(images[rows])
            for make, output in zip(prepared, outputs, strict=True):
                output[rows] = _normalize(make(part, rows), self.normalization)
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
    for rows in _chunks(images, size):
        output[rows] = _normalize(_central(unit_range(images[rows]), size), normalization)
    return output


def _chunks(images: Tensor, *sizes: int) -> Iterator[slice]:
    """Cut a batch (B, H, W, 3) into pieces that fit the cache; on an accelerator not at all."""
    count, height, width, _ = images.shape
    largest = max(height * width, *(size * size for size in sizes))
    chunk = max(1, CHUNK_PIXELS // largest) if images.device.type == "cpu" else max(1, count)
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def _empty(count: int, size: int, device: torch.device) -> Tensor:
    return torch.empty(count, 3, size, size, device=device, memory_format=torch.channels_last)


def _normalize(images: Tensor, normalization: Normalization) -> Tensor:
    mean = images.new_tensor(normalization.mean).view(1, 3, 1, 1)
    std = images.new_tensor(normalization.std).view(1, 3, 1, 1)
    return (images - mean).div_(std)


def prepare(
    view: ViewSettings, count: int, height: int, width: int, generator: torch.Generator
) -> Operation:
    """Draw all that one view of `count` images of `height` x `width` leaves to chance.

    Returns the function that makes the view of some of the images: it takes them, (N, 3, H, W)
    floats in [0, 1], and their place in the batch, and gives (N, 3, S, S) in [0, 1].
    """
    source = Source(count, height, width)
    used = view.used()
    operations = [_PREPARED[name](view, source, generator) for name in view.order if name in used]

    def make(images: Tensor, rows: slice) -> Tensor:
        for operation in operations:
            images = operation(images, rows)
        return images

    return make


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, device=generator.device, dtype=torch.float64)


def _between(low: float, high: float, generator: torch.Generator, count: int) -> Tensor:
    return low + (high - low) * _uniform(generator, count)


def _integers(below: int, generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(below, (count,), generator=generator, device=generator.device)


def _some(
    p: float,
    count: int,
    generator: torch.Generator,
    change: Callable[[Tensor, Tensor], Tensor],
) -> Operation:
    """Change each image with probability p, in place; `change` gets (images, places in batch)."""
    chosen = _uniform(generator, count) < p

    def operation(images: Tensor, rows: slice) -> Tensor:
        here = chosen[rows].nonzero().squeeze(1)
        there = here.to(images.device)
        changed = change(images.index_select(0, there), here + rows.start)
        return images.index_copy_(0, there, changed)

    return operation


def _central(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    if height == width == size:
        return images.clone()
    box = geometry.central_box(height, width)
    boxes = geometry.Boxes(*(torch.full((len(images),), side) for side in box))
    return geometry.crop_resize(images, boxes, size)


def _cut(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    if view.pad_crop is not None:
        return _padded_cut(view, source, generator, view.pad_crop.padding)
    crop = view.crop
    if crop is None:
        return lambda images, rows: _central(images, view.size)
    uniforms = _uniform(generator, source.count, ATTEMPTS, 4)
    boxes = geometry.random_boxes(
        source.height, source.width, uniforms, scale=crop.scale, ratio=crop.ratio
    )

    def operation(images: Tensor, rows: slice) -> Tensor:
        here = geometry.Boxes(*(side[rows] for side in boxes))
        return geometry.crop_resize(images, here, view.size, interpolation=crop.interpolation)

    return operation


def _padded_cut(
    view: ViewSettings, source: Source, generator: torch.Generator, padding: int
) -> Operation:
    room = min(source.height, source.width) + 2 * padding - view.size
    if room < 0:
        raise UserError(
            f"a view of {view.size} px cannot be cut from images of {source.width} x "
            f"{source.height} px padded by {padding}; lower its 'size' or raise 'padding'"
        )
    top = _integers(source.height + 2 * padding - view.size + 1, generator, source.count)
    left = _integers(source.width + 2 * padding - view.size + 1, generator, source.count)
    return lambda images, rows: geometry.pad_and_cut(
        images, top[rows], left[rows], view.size, padding=padding
    )


def _flip(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    return _some(view.flip, source.count, generator, lambda part, _: geometry.flip(part))


def _rotate(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    turns = 1 + _integers(3, generator, source.count)
    turns[_uniform(generator, source.count) >= view.rotate] = 0

    def operation(images: Tensor, rows: slice) -> Tensor:
        for turn in (1, 2, 3):
            there = (turns[rows] == turn).nonzero().squeeze(1).to(images.device)
            turned = geometry.quarter_turns(images.index_select(0, there), turn)
            images.index_copy_(0, there, turned)
        return images

    return operation


def _jitter(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    settings, count = view.jitter, source.count
    assert settings is not None
    amounts = {}
    for name in color.JITTERS:
        strength: float = getattr(settings, name)
        if strength == 0:
            continue
        if name == "hue" or (name == "brightness" and settings.brightness_mode == "add"):
            amounts[name] = _between(-strength, strength, generator, count)
        else:
            amounts[name] = _between(max(0.0, 1 - strength), 1 + strength, generator, count)
    if not amounts:
        return lambda images, rows: images
    positions = torch.tensor([color.JITTERS.index(name) for name in amounts])
    shuffled = _uniform(generator, count, len(amounts)).argsort(1)
    order = positions.to(generator.device)[shuffled]
    order[_uniform(generator, count) >= settings.p] = -1

    def operation(images: Tensor, rows: slice) -> Tensor:
        here = {name: amount[rows] for name, amount in amounts.items()}
        return color.jitter(images, order[rows], here, settings)

    return operation


def _grayscale(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    return _some(view.grayscale, source.count, generator, lambda part, _: color.grayscale(part))


def _blur(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    settings = view.blur
    assert settings is not None
    sigma = _between(*settings.sigma, generator, source.count)
    size = view.size // 10 if settings.size is None else settings.size

    def change(part: Tensor, places: Tensor) -> Tensor:
        return filters.blur(part, sigma[places], size, padding=settings.padding)

    return _some(settings.p, source.count, generator, change)


def _randaugment(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    assert view.randaugment is not None
    plan = randaugment.draw(view.randaugment, source.count, generator)

    def operation(images: Tensor, rows: slice) -> Tensor:
        here = randaugment.Plan(*(part[rows] for part in plan))
        return randaugment.randaugment(images, here)

    return operation


def _solarize(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    return _some(view.solarize, source.count, generator, lambda part, _: color.solarize(part))


def _sobel(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    return _some(view.sobel, source.count, generator, lambda part, _: filters.sobel_magnitude(part))


def _noise(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    settings = view.noise
    assert settings is not None
    shape = (source.count, 3, view.size, view.size)
    noise = torch.randn(shape, generator=generator, device=generator.device)

    def change(part: Tensor, places: Tensor) -> Tensor:
        return part.add(noise[places].to(part), alpha=settings.std).clamp_(0, 1)

    return _some(settings.p, source.count, generator, change)


def _cutout(view: ViewSettings, source: Source, generator: torch.Generator) -> Operation:
    settings = view.cutout
    assert settings is not None
    row = _integers(view.size, generator, source.count)
    column = _integers(view.size, generator, source.count)

    def change(part: Tensor, places: Tensor) -> Tensor:
        return geometry.cutout(part, row[places], column[places], settings.length)

    return _some(settings.p, source.count, generator, change)


_PREPARED: dict[str, Callable[[ViewSettings, Source, torch.Generator], Operation]] = {
    "crop": _cut,
    "flip": _flip,
    "rotate": _rotate,
    "jitter": _jitter,
    "grayscale": _grayscale,
    "blur": _blur,
    "randaugment": _randaugment,
    "solarize": _solarize,
    "sobel": _sobel,
    "noise": _noise,
    "cutout": _cutout,
}
