"""Blur and gradients against torchvision's and against sums written out."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from transferbench.augment import filters


@pytest.mark.parametrize("size", [3, 9, 22])
def test_each_image_is_blurred_with_its_own_kernel(size: int) -> None:
    images = torch.rand(4, 3, 24, 20, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0], dtype=torch.float64)
    result = filters.blur(images, sigma, size, padding="reflect")
    for image, own, deviation in zip(result, images, sigma.tolist(), strict=True):
        taps = 2 * (size // 2) + 1
        expected = reference.gaussian_blur(own, [taps, taps], [deviation, deviation])
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


def test_zero_padding_darkens_the_border_only() -> None:
    images = torch.ones(1, 3, 10, 10)
    result = filters.blur(images, torch.tensor([1.0]), 4)
    torch.testing.assert_close(result[..., 2:-2, 2:-2], images[..., 2:-2, 2:-2])
    assert result[..., 0].max() < 0.8


def test_a_tenth_of_a_small_side_is_no_blur_at_all() -> None:
    images = torch.rand(2, 3, 8, 8)
    blurred = filters.blur(images, torch.tensor([2.0, 0.5]), 8 // 10)
    torch.testing.assert_close(blurred, images)


def test_sobel_of_a_ramp_is_constant_inside() -> None:
    ramp = torch.arange(6.0).expand(1, 3, 6, 6)
    across, down = filters.sobel(ramp)[0]
    assert (across[1:-1, 1:-1] == -8).all()
    assert (down[1:-1, 1:-1] == 0).all()


def test_the_magnitude_has_three_equal_channels_in_range() -> None:
    images = torch.rand(2, 3, 6, 6)
    result = filters.sobel_magnitude(images)
    assert result.shape == images.shape
    assert torch.equal(result[:, 0], result[:, 2])
    assert result.min() >= 0
    assert result.max() <= 1
