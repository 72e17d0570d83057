"""Colour operations against torchvision's and Python's own, image by image."""

from __future__ import annotations

import colorsys
import itertools

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from transferbench.augment import color
from transferbench.augment.settings import JitterSettings

PLAIN = JitterSettings()
TENSORFLOW = JitterSettings(
    brightness_mode="add", contrast_mode="channel-mean", saturation_mode="hsv"
)
REFERENCES = {
    "brightness": reference.adjust_brightness,
    "contrast": reference.adjust_contrast,
    "saturation": reference.adjust_saturation,
    "hue": reference.adjust_hue,
}


def pictures(count: int, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images with grey, black, white and pure pixels among the others."""
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3))
    images[:, :, 0, 0] = 0.0
    images[:, :, 0, 1] = 1.0
    images[:, :, 0, 2] = 0.3
    images[:, :, 0, 3] = torch.tensor([1.0, 0.0, 0.0])
    images[:, :, 0, 4] = torch.tensor([0.2, 0.7, 0.7])
    return images.to(dtype)


def drawn_amounts(count: int) -> dict[str, Tensor]:
    uniform = torch.rand(4, count, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return {
        "brightness": 0.2 + 1.6 * uniform[0],
        "contrast": 0.2 + 1.6 * uniform[1],
        "saturation": 0.2 + 1.6 * uniform[2],
        "hue": uniform[3] - 0.5,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jitter_equals_torchvision_in_every_order(dtype: torch.dtype) -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images, amounts = pictures(len(orders), dtype=dtype), drawn_amounts(len(orders))
    result = color.jitter(images.clone(), orders, amounts, PLAIN)
    for i, order in enumerate(orders.tolist()):
        expected = images[i]
        for name in (color.JITTERS[position] for position in order):
            expected = REFERENCES[name](expected, float(amounts[name][i]))
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", [["hue"], ["contrast"], ["saturation", "hue"], ["brightness"]])
def test_a_part_of_the_operations_can_be_used(names: list[str]) -> None:
    images, amounts = pictures(5), drawn_amounts(5)
    positions = [color.JITTERS.index(name) for name in names]
    orders = torch.tensor([positions, positions[::-1]] * 2 + [[-1] * len(names)])
    result = color.jitter(images.clone(), orders, {n: amounts[n] for n in names}, PLAIN)
    for i, order in enumerate(orders.tolist()):
        expected = images[i]
        for position in order:
            if position >= 0:
                name = color.JITTERS[position]
                expected = REFERENCES[name](expected, float(amounts[name][i]))
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


def test_an_image_left_out_stays_as_it_is() -> None:
    images = pictures(6)
    orders = torch.tensor([[0, 1, 2, 3], [-1] * 4] * 3)
    result = color.jitter(images.clone(), orders, drawn_amounts(6), PLAIN)
    assert torch.equal(result[1::2], images[1::2])
    assert (result[::2] != images[::2]).flatten(1).any(1).all()


def test_all_images_left_out() -> None:
    images = pictures(3)
    orders = torch.full((3, 4), -1)
    assert torch.equal(color.jitter(images.clone(), orders, drawn_amounts(3), PLAIN), images)


def test_the_tensorflow_family_pixel_by_pixel() -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images = pictures(len(orders), size=6, dtype=torch.float64)
    amounts = drawn_amounts(len(orders))
    amounts["brightness"] = amounts["brightness"] - 1
    result = color.jitter(images.clone(), orders, amounts, TENSORFLOW)
    for i, order in enumerate(orders.tolist()):
        expected = images[i]
        for name in (color.JITTERS[position] for position in order):
            expected = tensorflow_operation(expected, name, float(amounts[name][i])).clamp(0, 1)
        torch.testing.assert_close(result[i], expected, atol=1e-9, rtol=0)


def tensorflow_operation(image: Tensor, name: str, amount: float) -> Tensor:
    if name == "brightness":
        return image + amount
    if name == "contrast":
        mean = image.mean((1, 2), keepdim=True)
        return amount * (image - mean) + mean
    pixels = []
    for pixel in image.flatten(1).T.tolist():
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        turned = (h + amount) % 1 if name == "hue" else h
        grown = min(s * amount, 1.0) if name == "saturation" else s
        pixels.append(colorsys.hsv_to_rgb(turned, grown, v))
    return torch.tensor(pixels, dtype=image.dtype).T.reshape(image.shape)


@pytest.mark.parametrize("shift", [-0.5, -1 / 3, -1 / 6, 0.0, 1e-3, 1 / 6, 0.5])
def test_hue_at_the_borders_of_the_sectors(shift: float) -> None:
    levels = (0.0, 0.25, 0.5, 1.0)
    image = torch.tensor(list(itertools.product(levels, repeat=3)), dtype=torch.float64)
    image = image.T.reshape(1, 3, 8, 8)
    result = color.hue(image, torch.tensor([shift]))[0]
    expected = tensorflow_operation(image[0], "hue", shift)
    torch.testing.assert_close(result, expected, atol=1e-9, rtol=0)
    assert result.min() >= 0
    assert result.max() <= 1


def test_hue_leaves_gray_alone_in_float32() -> None:
    image = torch.linspace(0, 1, 64).expand(3, 64).reshape(1, 3, 8, 8)
    assert torch.equal(color.hue(image, torch.tensor([0.37])), image)


def test_the_gray_of_floats_is_torchvisions() -> None:
    images = pictures(2)
    expected = reference.rgb_to_grayscale(images, 3)
    torch.testing.assert_close(color.grayscale(images), expected, atol=1e-6, rtol=0)


def test_the_gray_of_bytes_is_pillows() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 256, 256), generator=generator, dtype=torch.uint8)
    expected = torch.tensor(list(reference.to_pil_image(image).convert("L").tobytes()))
    assert torch.equal(color.gray(image).flatten().long(), expected)


def test_solarize_inverts_the_upper_half_of_both_kinds() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8)
    expected = reference.solarize(bytes_.view(1, 1, -1), 128).flatten()
    assert torch.equal(color.solarize(bytes_), expected)
    floats = torch.tensor([0.0, 0.4999, 0.5, 0.75, 1.0])
    torch.testing.assert_close(color.solarize(floats), torch.tensor([0.0, 0.4999, 0.5, 0.25, 0.0]))
