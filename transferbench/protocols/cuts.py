"""The images of a finetuning run: plain, or cut at random from all of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from transferbench.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transferbench.augment.geometry import Boxes
    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Split

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
FLIP = 0.5


def stored_side(input_size: int, natives: set[int | None]) -> int:
    """Return the side at which whole images are held for cuts that come out at `input_size`.

    A cut is a part of the image, so that there must be more pixels than it shows: twice as many
    for small inputs, above 64 px the usual 256 for 224; but no more than small squares have.
    """
    wanted = 2 * input_size if input_size <= 64 else round(input_size * 8 / 7)
    (native,) = natives if len(natives) == 1 else (None,)
    return wanted if native is None else min(native, wanted)


@dataclass(frozen=True)
class Images:
    """Images of one or more splits, one after the other, as they lie in the cache.

    Attributes
    ----------
    stores : list of array (N, S, S, 3) uint8
        One a split.
    sides : array (N, 2) or None
        Of whole images: true height and width. None for images that are shown as they are.
    """

    stores: list[NDArray[np.uint8]]
    sides: NDArray[np.int64] | None

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images (B, S, S, 3) at positions into all splits together."""
        side = self.stores[0].shape[1]
        found = np.empty((len(positions), side, side, 3), np.uint8)
        start = 0
        for store in self.stores:
            here = (positions >= start) & (positions < start + len(store))
            found[here] = store[positions[here] - start]
            start += len(store)
        return found


def plain_images(backbone: Backbone, splits: list[Split], progress: Progress) -> Images:
    """Return images as `linear` and every test sees them."""
    size, how = backbone.input_size, backbone.interpolation
    return Images([s.pixels(size, interpolation=how, progress=progress) for s in splits], None)


def whole_images(backbone: Backbone, splits: list[Split], progress: Progress) -> Images:
    """Return whole images, to be cut at random."""
    from transferbench.data.images import whole_pixels

    side = stored_side(backbone.input_size, {split.native_size for split in splits})
    parts = [
        whole_pixels(s, side, interpolation=backbone.interpolation, progress=progress)
        for s in splits
    ]
    return Images([pixels for pixels, _ in parts], np.concatenate([sides for _, sides in parts]))


def random_cuts(
    backbone: Backbone,
    images: Tensor,
    sides: NDArray[np.int64],
    generator: torch.Generator,
) -> Tensor:
    """Return random resized crops, half of them flipped, normalised.

    Parameters
    ----------
    backbone : Backbone
        Gives size, filter and normalisation.
    images : Tensor (B, S, S, 3) uint8
        Whole images, squashed; on any device.
    sides : array (B, 2)
        True height and width.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor (B, 3, input_size, input_size) float32
    """
    import torch

    from transferbench.augment.geometry import crop_resize, flip
    from transferbench.augment.views import unit_range

    uniforms = torch.rand(len(images), ATTEMPTS, 4, generator=generator, dtype=torch.float64)
    turned = torch.rand(len(images), generator=generator) < FLIP
    boxes = cut_boxes(torch.from_numpy(sides), images.shape[1], uniforms)
    cut = crop_resize(
        unit_range(images), boxes, backbone.input_size, interpolation=backbone.interpolation
    )
    where = turned.to(cut.device, non_blocking=True).view(-1, 1, 1, 1)
    cut = torch.where(where, flip(cut), cut)
    mean, std = (cut.new_tensor(each).view(1, 3, 1, 1) for each in (backbone.mean, backbone.std))
    return cut.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def cut_boxes(sides: Tensor, stored: int, uniforms: Tensor) -> Boxes:
    """Choose the boxes of random resized crop in images of any shape, squashed to squares.

    Parameters
    ----------
    sides : Tensor (B, 2)
        True height and width of each image, in which area and ratio are drawn.
    stored : int
        Side of the squashed images, in whose pixels the boxes are given.
    uniforms : Tensor (B, A, 4)
        Uniform in [0, 1): for each of A attempts area, ratio, top and left. The first box that
        fits is taken; where none does, the largest central one within the ratio.

    Notes
    -----
    pytorch/vision: torchvision/transforms/transforms.py, RandomResizedCrop; boxes are rounded to
    stored pixels, not to those of the file.
    """
    import torch

    from transferbench.augment.geometry import Boxes

    area, aspect, down, right = uniforms.double().unbind(-1)
    height, width = (side.double()[:, None] for side in sides.unbind(1))
    area = (SCALE[0] + (SCALE[1] - SCALE[0]) * area) * (height * width)
    low, high = (float(np.log(ratio)) for ratio in RATIO)
    aspect = torch.exp(low + (high - low) * aspect)
    widths, heights = torch.sqrt(area * aspect), torch.sqrt(area / aspect)
    fits = (widths <= width) & (heights <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    none = ~fits.any(1, keepdim=True)
    w = torch.where(none, torch.minimum(width, height * RATIO[1]), widths.gather(1, first))
    h = torch.where(none, torch.minimum(height, width / RATIO[0]), heights.gather(1, first))
    middle = torch.full_like(w, 0.5)
    top = torch.where(none, middle, down.gather(1, first)) * (height - h)
    left = torch.where(none, middle, right.gather(1, first)) * (width - w)

    def pixels(start: Tensor, length: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        size = (length * stored / side).round().clamp(1, stored)
        begin = torch.minimum((start * stored / side).round(), stored - size)
        return begin.long().squeeze(1), size.long().squeeze(1)

    (top, h), (left, w) = pixels(top, h, height), pixels(left, w, width)
    return Boxes(top, left, h, w)
