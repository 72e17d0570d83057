"""Operations that look at neighbouring pixels: Gaussian blur and Sobel gradients."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


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
    count, channels, height, width = images.shape
    radius = size // 2
    kernel = gaussian_kernel(sigma.to(images), size).repeat_interleave(channels, 0)
    if count == 0:
        return images
    planes = images.reshape(1, count * channels, height, width)
    for sides, shape in (((radius, radius, 0, 0), (1, -1)), ((0, 0, radius, radius), (-1, 1))):
        mode = "constant" if padding == "zero" else "reflect"
        taps = kernel.view(count * channels, 1, *shape)
        planes = functional.conv2d(
            functional.pad(planes, sides, mode=mode), taps, groups=count * channels
        )
    return planes.view(count, channels, height, width)


def sobel(images: Tensor) -> Tensor:
    """Return the two gradients (B, 2, H, W) of the channels' mean, zero beyond the border.

    facebookresearch/deepcluster: models/alexnet.py.
    """
    across = images.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    weights = torch.stack((across, across.T)).unsqueeze(1)
    return functional.conv2d(images.mean(1, keepdim=True), weights, padding=1)


def sobel_magnitude(images: Tensor) -> Tensor:
    """Return the length of the Sobel gradient on three equal channels, clipped to [0, 1]."""
    length = torch.linalg.vector_norm(sobel(images), dim=1, keepdim=True)
    return length.clamp_(0, 1).expand_as(images)
