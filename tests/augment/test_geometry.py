"""Boxes against the rule written out, resizing against torchvision's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from transferbench.augment import geometry
from transferbench.augment.geometry import Boxes

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def uniforms(count: int, attempts: int = 10, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, attempts, 4, generator=generator, dtype=torch.float64)


def box_of(
    height: int,
    width: int,
    attempts: list[list[float]],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """The rule of random resized crop for one image, as torchvision states it."""
    for u1, u2, u3, u4 in attempts:
        area = (scale[0] + (scale[1] - scale[0]) * u1) * height * width
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * u2)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(u3 * (height - h + 1)), math.floor(u4 * (width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (32, 32, (0.08, 1.0)),
        (40, 30, (0.9, 1.0)),
        (20, 101, (0.5, 1.0)),
        (90, 16, (0.8, 1.0)),
        (224, 224, (0.05, 0.14)),
    ],
)
@pytest.mark.parametrize("attempts", [1, 3, 10])
def test_boxes_follow_the_rule(
    height: int, width: int, scale: tuple[float, float], attempts: int
) -> None:
    ratio = (3 / 4, 4 / 3)
    drawn = uniforms(300, attempts)
    boxes = geometry.random_boxes(height, width, drawn, scale=scale, ratio=ratio)
    expected = [box_of(height, width, row, scale, ratio) for row in drawn.tolist()]
    assert list(zip(*(side.tolist() for side in boxes), strict=True)) == expected


def test_boxes_reach_every_corner() -> None:
    boxes = geometry.random_boxes(8, 8, uniforms(4000), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
    bottom, right = boxes.top + boxes.height, boxes.left + boxes.width
    assert boxes.top.min() == boxes.left.min() == 0
    assert bottom.max() == right.max() == 8


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (50, 41, 16), (12, 20, 24)])
def test_cropping_equals_torchvision(
    interpolation: geometry.Interpolation, height: int, width: int, size: int
) -> None:
    images = torch.rand(40, 3, height, width, generator=torch.Generator().manual_seed(1))
    boxes = geometry.random_boxes(
        height, width, uniforms(40), scale=(0.05, 1.0), ratio=(1 / 3, 3.0)
    )
    result = geometry.crop_resize(images, boxes, size, interpolation=interpolation)
    for i, box in enumerate(zip(*(side.tolist() for side in boxes), strict=True)):
        expected = reference.resized_crop(
            images[i], *box, [size, size], interpolation=MODES[interpolation], antialias=True
        ).clamp(0, 1)
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


def test_the_whole_image_at_its_own_size_is_itself() -> None:
    images = torch.rand(2, 3, 9, 9)
    boxes = Boxes(*(torch.tensor([side, side]) for side in (0, 0, 9, 9)))
    torch.testing.assert_close(geometry.crop_resize(images, boxes, 9), images)


def test_a_padded_cut_is_the_image_moved_over_zeros() -> None:
    images = torch.arange(1.0, 2 * 3 * 25 + 1).view(2, 3, 5, 5)
    cut = geometry.pad_and_cut(images, torch.tensor([0, 4]), torch.tensor([1, 4]), 5, padding=2)
    assert cut[0, :, :2].abs().sum() == 0
    assert torch.equal(cut[0, :, 2:, 1:], images[0, :, :3, :4])
    assert torch.equal(cut[1, :, :3, :3], images[1, :, 2:, 2:])
    assert cut[1, :, 3:].abs().sum() == 0


def test_one_turn_is_counter_clockwise() -> None:
    image = torch.tensor([[1, 2], [3, 4]])
    assert geometry.quarter_turns(image).tolist() == [[2, 4], [1, 3]]
    assert torch.equal(geometry.quarter_turns(image, 4), image)


def test_cutout_stops_at_the_border_of_each_image() -> None:
    images = torch.ones(3, 2, 6, 7)
    cut = geometry.cutout(images, torch.tensor([0, 3, 5]), torch.tensor([0, 3, 6]), 4)
    assert [int((image == 0).sum()) for image in cut[:, 0]] == [4, 16, 9]
    assert cut[1, 0, 1:5, 1:5].sum() == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
