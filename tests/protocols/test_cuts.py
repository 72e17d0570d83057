"""Random cuts from whole images of any shape."""

import numpy as np
import torch

from tests.protocols.stubs import make_backbone
from transferbench.augment.geometry import random_boxes
from transferbench.protocols.cuts import RATIO, SCALE, Images, cut_boxes, random_cuts, stored_side


def uniforms(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 10, 4, generator=generator, dtype=torch.float64)


def test_boxes_have_the_areas_and_shapes_of_the_true_image():
    sides = torch.tensor([[300, 600]]).repeat(2000, 1)
    boxes = cut_boxes(sides, 256, uniforms(2000))
    height, width = boxes.height * 300 / 256, boxes.width * 600 / 256
    share, ratio = height * width / (300 * 600), width / height
    assert (boxes.top >= 0).all()
    assert (boxes.top + boxes.height <= 256).all()
    assert (boxes.left + boxes.width <= 256).all()
    assert SCALE[0] * 0.97 < share.min() < 0.1
    assert 0.4 < share.max() < 1.02
    assert RATIO[0] * 0.95 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < RATIO[1] * 1.05


def test_on_a_square_they_are_those_of_pretraining_up_to_rounding():
    drawn = uniforms(500)
    sides = torch.full((500, 2), 64)
    ours = cut_boxes(sides, 64, drawn)
    theirs = random_boxes(64, 64, drawn, scale=SCALE, ratio=RATIO)
    close = [((a - b).abs() <= 1).float().mean() for a, b in zip(ours, theirs, strict=True)]
    assert min(close) > 0.97


def test_where_no_box_fits_the_central_one_is_taken():
    never = torch.ones(1, 10, 4, dtype=torch.float64) * 0.999
    boxes = cut_boxes(torch.tensor([[100, 1000]]), 200, never)
    assert (int(boxes.top), int(boxes.height)) == (0, 200)
    # 133 of 1000 px wide, in the middle.
    assert int(boxes.width) == 27
    assert abs(int(boxes.left) - 86.5) <= 1


def test_cuts_are_normalised_repeatable_and_half_of_them_flipped():
    backbone = make_backbone()
    ramp = np.tile(np.arange(0, 160, 10, dtype=np.uint8)[None, None, :, None], (200, 16, 1, 3))
    sides = np.full((200, 2), 16)
    made = [
        random_cuts(backbone, torch.from_numpy(ramp), sides, torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert (made[0] == made[1]).all()
    assert (made[0] != made[2]).any()
    assert made[0].shape == (200, 3, 8, 8)
    assert made[0].is_contiguous(memory_format=torch.channels_last)
    rising = (made[0][:, 0, 0, -1] > made[0][:, 0, 0, 0]).float().mean()
    assert 0.35 < rising < 0.65
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    pixels = made[0].permute(0, 2, 3, 1) * std + mean
    assert pixels.min() > -0.01
    assert pixels.max() < 160 / 255


def test_images_of_several_splits_are_read_by_their_places():
    first, second = (np.full((n, 2, 2, 3), n, np.uint8) for n in (3, 5))
    found = Images([first, second], None).read(np.array([7, 0, 3, 2]))
    assert found[:, 0, 0, 0].tolist() == [5, 3, 5, 3]


def test_whole_images_are_held_larger_than_a_cut_and_no_larger_than_they_are():
    assert stored_side(224, {None}) == 256
    assert stored_side(32, {None, 64}) == 64
    assert stored_side(224, {32}) == 32
    assert stored_side(32, {500}) == 64
