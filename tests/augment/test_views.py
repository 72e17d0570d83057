"""Views of a recipe: sizes, chance, order, and what reaches the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from transferbench.augment import views as views_module
from transferbench.augment.settings import Normalization, ViewSettings
from transferbench.augment.views import MultiView, plain_view
from transferbench.errors import UserError

NONE = Normalization.model_validate("none")
EVERYTHING = ViewSettings.model_validate(
    {
        "count": 2,
        "size": 16,
        "crop": {"scale": [0.2, 1.0], "interpolation": "bicubic"},
        "flip": 0.5,
        "rotate": 0.5,
        "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        "grayscale": 0.2,
        "blur": {"size": 3},
        "randaugment": {},
        "solarize": 0.2,
        "sobel": 0.2,
        "noise": {"p": 0.5, "std": 0.1},
        "cutout": {"p": 0.5, "length": 6},
    }
)


def images(count: int, height: int = 20, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator).byte()


def made(
    batch: Tensor, *, seed: int = 0, normalization: Normalization = NONE, **view: Any
) -> Tensor:
    """One view of the batch."""
    maker = MultiView([ViewSettings.model_validate({"size": 16} | view)], normalization)
    return maker(batch, torch.Generator().manual_seed(seed))[0]


def test_counts_and_sizes_are_expanded_in_order() -> None:
    small = ViewSettings.model_validate({"count": 3, "size": 8, "crop": {}})
    maker = MultiView([EVERYTHING, small], NONE)
    assert maker.sizes == (16, 16, 8, 8, 8)
    result = maker(images(5), torch.Generator().manual_seed(0))
    assert [tuple(view.shape) for view in result] == [(5, 3, s, s) for s in maker.sizes]
    for view in result:
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert view.min() >= 0
        assert view.max() <= 1


def test_the_generator_alone_decides_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several chunks, so that their order counts too.
    monkeypatch.setattr(views_module, "CHUNK_PIXELS", 20 * 20 * 7)
    maker, batch = MultiView([EVERYTHING], NONE), images(40)
    generator = torch.Generator().manual_seed(1)
    first = maker(batch, generator)
    state = generator.get_state()
    second = maker(batch, generator)
    assert not torch.equal(first[0], second[0])
    assert all(
        torch.equal(a, b)
        for a, b in zip(first, maker(batch, torch.Generator().manual_seed(1)), strict=True)
    )
    generator.set_state(state)
    assert all(torch.equal(a, b) for a, b in zip(second, maker(batch, generator), strict=True))


@pytest.mark.parametrize("cut", [{}, {"crop": None, "pad_crop": {"padding": 3}}])
def test_the_views_do_not_depend_on_what_is_worked_on_at_once(
    cut: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # RandAugment's 8 bits would turn the last digits into whole levels.
    everything = EVERYTHING.model_dump() | {"randaugment": None}
    view = ViewSettings.model_validate(everything | cut)
    maker, batch = MultiView([view], NONE), images(40)
    whole = maker(batch, torch.Generator().manual_seed(1))
    monkeypatch.setattr(views_module, "CHUNK_PIXELS", 20 * 20 * 7)
    pieces = maker(batch, torch.Generator().manual_seed(1))
    for a, b in zip(whole, pieces, strict=True):
        # Rounding may cross the threshold of solarize in single pixels, which changes little.
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_neither_the_images_nor_the_global_chance_are_touched() -> None:
    batch = images(30)
    before, state = batch.clone(), torch.get_rng_state()
    MultiView([EVERYTHING], NONE)(batch, torch.Generator().manual_seed(1))
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_views_at_the_images_own_size_do_not_share_memory() -> None:
    settings = ViewSettings.model_validate({"count": 2, "size": 16, "flip": 1.0})
    first, second = MultiView([settings], NONE)(images(3, 16, 16), torch.Generator())
    assert torch.equal(first, second)


def test_equal_images_get_different_views() -> None:
    same = images(1).expand(12, -1, -1, -1)
    first, second = MultiView([EVERYTHING], NONE)(same, torch.Generator().manual_seed(2))
    everything = torch.cat((first, second)).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 24


@pytest.mark.parametrize(
    "view",
    [
        {"flip": 0.3},
        {"rotate": 0.3},
        {"grayscale": 0.3},
        {"solarize": 0.3},
        {"sobel": 0.3},
        {"jitter": {"p": 0.3, "brightness": 0.4, "hue": 0.2}},
        {"blur": {"p": 0.3, "size": 3}},
        {"noise": {"p": 0.3}},
        {"cutout": {"p": 0.3, "length": 4}},
    ],
    ids=lambda view: next(iter(view)),
)
def test_every_operation_changes_its_share_of_the_images(view: dict[str, Any]) -> None:
    batch = images(600, 16, 16)
    result = made(batch, **view)
    changed = (result != made(batch)).flatten(1).any(1).double().mean()
    # Four standard deviations of the share.
    assert abs(changed - 0.3) < 4 * (0.3 * 0.7 / 600) ** 0.5


def test_all_turns_are_equally_likely() -> None:
    batch = images(1, 16, 16).expand(900, -1, -1, -1)
    result = made(batch, rotate=1.0)
    for turns in (1, 2, 3):
        turned = torch.rot90(made(batch[:1]), turns, (2, 3))
        share = (result == turned).flatten(1).all(1).double().mean()
        assert abs(share - 1 / 3) < 4 * (2 / 9 / 900) ** 0.5


def test_the_order_of_operations_is_the_views() -> None:
    batch = images(20, 16, 16)
    both = {"grayscale": 1.0, "noise": {"std": 0.2}}
    gray_last = made(batch, **both, order=["crop", "noise", "grayscale"])
    gray_first = made(batch, **both, order=["crop", "grayscale", "noise"])
    assert torch.equal(gray_last[:, 0], gray_last[:, 1])
    assert not torch.equal(gray_first[:, 0], gray_first[:, 1])


def test_additive_brightness_moves_every_pixel_alike() -> None:
    batch = images(50, 16, 16).clamp(110, 140)
    jitter = {"p": 1.0, "brightness": 0.2, "brightness_mode": "add"}
    moved = made(batch, jitter=jitter) - made(batch)
    assert (moved.flatten(1).std(1) < 1e-6).all()
    assert moved.flatten(1).mean(1).abs().max() <= 0.2
    assert moved.flatten(1).mean(1).std() > 0.08


def test_a_factor_is_drawn_within_its_strength() -> None:
    batch = torch.full((400, 16, 16, 3), 100, dtype=torch.uint8)
    factor = made(batch, jitter={"p": 1.0, "brightness": 0.4})[:, 0, 0, 0] * 255 / 100
    assert 0.6 <= factor.min() < 0.63
    assert 1.37 < factor.max() <= 1.4 + 1e-5


def test_each_image_meets_its_own_sigma_and_its_own_noise() -> None:
    batch = images(40, 16, 16)
    plain = made(batch)
    always = made(batch, blur={"p": 1.0, "size": 5}, seed=3)
    sometimes = made(batch, blur={"p": 0.4, "size": 5}, seed=3)
    for image, own, changed in zip(plain, always, sometimes, strict=True):
        assert torch.equal(changed, image) or torch.equal(changed, own)
    always = made(batch, noise={"p": 1.0}, seed=3)
    sometimes = made(batch, noise={"p": 0.4}, seed=3)
    for image, own, changed in zip(plain, always, sometimes, strict=True):
        assert torch.equal(changed, image) or torch.equal(changed, own)


def test_normalization_comes_last() -> None:
    batch = images(4, 16, 16)
    given = Normalization(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    expected = batch.permute(0, 3, 1, 2) / 255
    expected = (expected - torch.tensor(given.mean).view(1, 3, 1, 1)) / torch.tensor(
        given.std
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(made(batch, normalization=given), expected)


def test_a_padded_cut_of_the_cifar_recipe() -> None:
    batch = images(64, 16, 16).clamp(min=1)
    result = made(batch, pad_crop={"padding": 4})
    black = (result == 0).all(1).flatten(1).double().mean(1)
    assert black.max() <= 1 - (12 / 16) ** 2
    assert len(torch.unique(black)) > 5


def test_a_cut_larger_than_the_padded_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"16 px cannot be cut from images of 9 x 12 px"):
        made(images(2, 12, 9), pad_crop={"padding": 2})


@pytest.mark.parametrize(("height", "width"), [(20, 20), (30, 20), (20, 33)])
def test_the_plain_view_is_the_resized_centre(height: int, width: int) -> None:
    batch = images(3, height, width)
    top, left = (height - 20) // 2, (width - 20) // 2
    centre = batch[:, top : top + 20, left : left + 20].contiguous()
    result = plain_view(batch, 10, NONE)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, plain_view(centre, 10, NONE))
    expected = torch.nn.functional.interpolate(
        centre.permute(0, 3, 1, 2) / 255, size=10, mode="bilinear", antialias=True
    )
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    # A view without any operation is the same.
    torch.testing.assert_close(made(batch, size=10), result)


def test_no_images_give_no_views() -> None:
    assert made(images(0), crop={}, flip=0.5).shape == (0, 3, 16, 16)
