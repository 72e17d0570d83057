"""Where a view is cut from and how it is turned: boxes, resizing, flips, turns, cutout.

Resizing is separable and linear, so each image's box becomes two small matrices, and a batch of
boxes of different sizes two batched products. The weights are those of torch's and Pillow's
antialiased resizing of the box alone: pixels outside the box do not count.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Interpolation = Literal["bilinear", "bicubic"]


class Boxes(NamedTuple):
    """One box an image, in pixels; each a tensor (B,) int64."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def random_boxes(
    height: int,
    width: int,
    uniforms: Tensor,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Boxes:
    """Choose the boxes of random resized crop.

    Parameters
    ----------
    height, width : int
        Of the images, in pixels.
    uniforms : Tensor (B, A, 4)
        Uniform in [0, 1): for each of A attempts area, ratio, top and left. The first box that
        fits is taken; where none does, the largest central one within `ratio`.
    scale, ratio : (float, float)
        Ranges of the area's share, uniform, and of width over height, log-uniform.

    Notes
    -----
    pytorch/vision: torchvision/transforms/transforms.py, RandomResizedCrop: 10 attempts.
    """
    area, aspect, down, right = uniforms.double().unbind(-1)
    area = (scale[0] + (scale[1] - scale[0]) * area) * (height * width)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * aspect)
    widths = torch.sqrt(area * aspect).round()
    heights = torch.sqrt(area / aspect).round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)

    def at_first(values: Tensor) -> Tensor:
        return values.gather(1, first).squeeze(1)

    w, h = at_first(widths), at_first(heights)
    top = torch.floor(at_first(down) * (height - h + 1))
    left = torch.floor(at_first(right) * (width - w + 1))
    none = ~fits.any(1)
    central = central_box(height, width, ratio=ratio)
    chosen = (
        torch.where(none, float(fixed), drawn).long()
        for fixed, drawn in zip(central, (top, left, h, w), strict=True)
    )
    return Boxes(*chosen)


def central_box(
    height: int, width: int, *, ratio: tuple[float, float] = (1.0, 1.0)
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the largest central box with width/height in `ratio`."""
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def resize_weights(
    start: Tensor,
    length: Tensor,
    size_in: int,
    size_out: int,
    *,
    interpolation: Interpolation,
    dtype: torch.dtype,
) -> Tensor:
    """Return matrices (B, size_out, size_in) that resize `length` pixels from `start` on.

    The filter (a triangle, or the cubic of a = -0.5) is widened by the factor of shrinking, and
    what falls outside the box is left out and the rest brought to sum 1.
    """
    start = start.to(dtype).view(-1, 1, 1)
    length = length.to(dtype).view(-1, 1, 1)
    step = length / size_out
    widening = step.clamp(min=1.0)
    out = torch.arange(size_out, device=start.device, dtype=dtype).add_(0.5).view(1, -1, 1)
    pixel = torch.arange(size_in, device=start.device, dtype=dtype).view(1, 1, -1)
    inside = ((pixel >= start) & (pixel < start + length)).to(dtype)
    centers = (out * step + (start - 0.5)) / widening
    distance = (pixel / widening - centers).abs_()
    if interpolation == "bilinear":
        weights = distance.neg_().add_(1).clamp_(min=0)
    else:
        near = ((1.5 * distance - 2.5) * distance).mul_(distance).add_(1)
        far = ((-0.5 * distance + 2.5) * distance - 4).mul_(distance).add_(2)
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights.mul_(inside)
    return weights.div_(weights.sum(-1, keepdim=True))


def apply_separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ channel @ columns^T of every channel.

    images (B, C, H, W), rows (B, h, H), columns (B, w, W) give (B, C, h, w).
    """
    count, channels, height, width = images.shape
    across = torch.bmm(images.reshape(count, channels * height, width), columns.mT)
    return torch.matmul(rows.unsqueeze(1), across.view(count, channels, height, columns.shape[1]))


def crop_resize(
    images: Tensor, boxes: Boxes, size: int, *, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Cut each image's box and resize it to `size` x `size`.

    images (B, 3, H, W) floats in [0, 1]; the result (B, 3, size, size) is clipped to it (the
    cubic overshoots).
    """
    height, width = images.shape[-2:]
    top, left, box_height, box_width = (side.to(images.device) for side in boxes)
    rows = resize_weights(
        top, box_height, height, size, interpolation=interpolation, dtype=images.dtype
    )
    columns = resize_weights(
        left, box_width, width, size, interpolation=interpolation, dtype=images.dtype
    )
    resized = apply_separable(images, rows, columns)
    return resized.clamp_(0, 1) if interpolation == "bicubic" else resized


def pad_and_cut(images: Tensor, top: Tensor, left: Tensor, size: int, *, padding: int) -> Tensor:
    """Zero-pad every side and cut a box of `size` x `size` from each image's own corner.

    images (B, 3, H, W); top, left (B,) int64, at most H + 2 * padding - size.
    """
    padded = functional.pad(images, (padding, padding, padding, padding))
    side = torch.arange(size, device=images.device)
    rows = (top.to(images.device)[:, None] + side)[:, None, :, None]
    columns = (left.to(images.device)[:, None] + side)[:, None, None, :]
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return padded[batch, channel, rows, columns]


def flip(images: Tensor) -> Tensor:
    """Reverse the columns of images (..., H, W)."""
    return images.flip(-1)


def quarter_turns(images: Tensor, turns: int = 1) -> Tensor:
    """Turn images (..., H, W) counter-clockwise: for one turn out[i][j] = in[j][W - 1 - i]."""
    return torch.rot90(images, turns, (-2, -1))


def cutout(images: Tensor, row: Tensor, column: Tensor, length: int) -> Tensor:
    """Set a square around a pixel of each image to 0 (arXiv 1708.04552).

    images (B, C, H, W); row, column (B,) int64. Rows from row - length // 2 up to but without
    row + length // 2, and columns likewise, cut at the border.
    """
    height, width = images.shape[-2:]
    half = length // 2

    def outside(center: Tensor, size: int) -> Tensor:
        position = torch.arange(size, device=images.device)
        center = center.to(images.device)[:, None]
        return (position < center - half) | (position >= center + half)

    keep = outside(row, height)[:, None, :, None] | outside(column, width)[:, None, None, :]
    return images * keep
