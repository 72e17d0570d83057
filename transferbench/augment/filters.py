"""Operations that look at neighbouring pixels: Gaussian blur and Sobel gradients."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from transferbench.augment.geometry import apply_separable


def gaussian_kernel(sigma: Tensor, size: int) -> Tensor:
    """Return 2 * (size // 2) + 1 taps for each standard deviation.

    sigma (B,) in pixels gives (B, taps), each row of sum 1 (google-research/simclr: data_util.py).
    """
    radius = size // 2
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    taps = torch.exp(-(offset**2) / (2 * sigma[:, None] ** 2))
    return taps / taps.sum(1, keepdim=True)


def blur(
    images: Tensor, sigma: Tensor, size: int, *, padding: Literal["zero", "reflect"] = "zero"
) -> Tensor:
    """Blur each image with a Gaussian of its own.

    images (B, C, H, W), sigma (B,) in pixels. SimCLR takes `size` as a tenth of the side;
    "reflect" mirrors without repeating the edge pixel and needs size // 2 below the side.
    """
    kernel = gaussian_kernel(sigma.to(images), size)
    rows, columns = (_band(kernel, side, padding) for side in images.shape[-2:])
    return apply_separable(images, rows, columns)


def _band(kernel: Tensor, side: int, padding: str) -> Tensor:
    """Return matrices (B, side, side) that slide each kernel (B, taps) along a side."""
    count, taps = kernel.shape
    offset = torch.arange(taps, device=kernel.device) - taps // 2
    position = torch.arange(side, device=kernel.device)[:, None] + offset
    weights = kernel[:, None, :].expand(count, side, taps)
    if padding == "reflect":
        position = side - 1 - (side - 1 - position.abs()).abs()
    else:
        weights = weights * ((position >= 0) & (position < side))
        position = position.clamp(0, side - 1)
    band = kernel.new_zeros(count, side, side)
    return band.scatter_add_(2, position.expand(count, side, taps), weights)


def sobel(images: Tensor) -> Tensor:
    """Return the two gradients (B, 2, H, W) of the channels' mean, zero beyond the border.

    facebookresearch/deepcluster: models/alexnet.py.
    """
    across = images.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    weights = torch.stack((across, across.T)).unsqueeze(1)
    return functional.conv2d(images.mean(1, keepdim=True), weights, padding=1)


def sobel_magnitude(images: Tensor) -> Tensor:
    """Return the length of the Sobel gradient on three equal channels, clipped to [0, 1]."""
    length: Tensor = torch.linalg.vector_norm(sobel(images), dim=1, keepdim=True)
    return length.clamp_(0, 1).expand_as(images)
