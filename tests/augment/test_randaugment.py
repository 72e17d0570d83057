"""RandAugment against Pillow, operation by operation, and what it leaves to chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torch import Tensor

from transferbench.augment import views
from transferbench.augment.randaugment import (
    COLORS,
    FILL,
    MOVES,
    OPERATIONS,
    Plan,
    argument,
    draw,
    randaugment,
)
from transferbench.augment.settings import Normalization, RandAugmentSettings, ViewSettings
from transferbench.augment.views import MultiView

COUNT = 6
OF_TIMM: dict[str, Any] = auto_augment.NAME_TO_OP
RULE_OF_TIMM: dict[str, Any] = auto_augment.LEVEL_TO_ARG


def images() -> Tensor:
    """Coarse noise (B, 3, 33, 40) uint8, one image dark and one of a single colour."""
    chance = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (COUNT, 3, 8, 9), generator=chance).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(33, 40), mode="bicubic")
    batch = smooth.clamp(0, 255).byte()
    batch[1] = batch[1] // 3 + 20
    batch[2] = torch.tensor([7, 100, 250], dtype=torch.uint8).view(3, 1, 1)
    return batch


def done(operation: str, arguments: Tensor, *, bicubic: bool = False) -> Tensor:
    """What a plan of one step makes of `images()`, back in 8 bits."""
    kinds = torch.full((COUNT, 1), OPERATIONS.index(operation))
    plan = Plan(kinds, arguments.view(-1, 1), torch.full((COUNT, 1), bicubic))
    result = randaugment(images().float() / 255, plan) * 255
    torch.testing.assert_close(result, result.round(), atol=1e-3, rtol=0)
    return result.round().int()


def by_pillow(operation: str, arguments: Tensor, *, bicubic: bool = False) -> Tensor:
    """The same by timm's functions of one Pillow image."""
    name = operation + "Rel" if operation.startswith("Translate") else operation
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    results = []
    for image, value in zip(images(), arguments.tolist(), strict=True):
        given: tuple[Any, ...] = (value,)
        if operation in ("Posterize", "Solarize", "SolarizeAdd"):
            given = (int(value),)
        if RULE_OF_TIMM[name] is None:
            given = ()
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        made = OF_TIMM[name](picture, *given, fillcolor=FILL, resample=resample)
        results.append(torch.from_numpy(np.array(made)).permute(2, 0, 1))
    return torch.stack(results).int()


def strengths(operation: str) -> Tensor:
    """Arguments (6,) of six magnitudes, every other one negative where signs are drawn."""
    values = argument(operation, torch.tensor([10.0, 9.5, 8.2, 7.0, 5.0, 2.6], dtype=torch.float64))
    return values * torch.tensor([1, -1, 1, -1, 1, -1]) if operation in MOVES else values


@pytest.mark.parametrize("operation", COLORS)
def test_colors_are_pillow_s(operation: str) -> None:
    arguments = strengths(operation)
    apart = (done(operation, arguments) - by_pillow(operation, arguments)).abs()
    # AutoContrast is scaled in single precision here, in double there.
    assert apart.max() <= (1 if operation == "AutoContrast" else 0)
    assert apart.double().mean() < 1e-3


@pytest.mark.parametrize("operation", MOVES)
def test_moves_are_pillow_s_but_for_the_bicubic_kernel(operation: str) -> None:
    arguments = strengths(operation)
    apart = (done(operation, arguments) - by_pillow(operation, arguments)).abs()
    assert apart.max() <= 1
    assert apart.double().mean() < 0.01
    smooth = (
        done(operation, arguments, bicubic=True) - by_pillow(operation, arguments, bicubic=True)
    ).abs()
    assert smooth.max() <= 8
    assert smooth.double().mean() < 1


def test_no_bits_are_black() -> None:
    assert done("Posterize", argument("Posterize", torch.full((COUNT,), 2.0))).max() == 0


def test_arguments_have_timm_s_ranges() -> None:
    for operation in OPERATIONS:
        name = operation + "Rel" if operation.startswith("Translate") else operation
        rule = RULE_OF_TIMM[name]
        for magnitude in (0.0, 2.6, 7.5, 9.99, 10.0):
            ours = float(argument(operation, torch.tensor(magnitude, dtype=torch.float64)))
            theirs = abs(rule(magnitude, {})[0]) if rule else 0.0
            assert ours == pytest.approx(theirs, abs=1e-12), (operation, magnitude)


def test_plans_have_the_published_chances() -> None:
    plan = draw(RandAugmentSettings(), 30_000, torch.Generator().manual_seed(0))
    applied = plan.kinds[plan.kinds >= 0]
    assert len(applied) / plan.kinds.numel() == pytest.approx(0.5, abs=0.01)
    shares = torch.bincount(applied, minlength=15) / len(applied)
    torch.testing.assert_close(shares, torch.full((15,), 1 / 15), atol=0.006, rtol=0)
    angles = plan.arguments[plan.kinds == OPERATIONS.index("Rotate")]
    assert angles.abs().max() == 30
    assert (angles.abs() == 30).double().mean() == pytest.approx(0.5, abs=0.03)
    assert (angles < 0).double().mean() == pytest.approx(0.5, abs=0.03)
    assert plan.bicubic.double().mean() == pytest.approx(0.5, abs=0.01)


def test_a_second_operation_sees_what_the_first_made() -> None:
    kinds = torch.tensor([[OPERATIONS.index("Invert"), OPERATIONS.index("SolarizeAdd")]])
    plan = Plan(kinds, torch.tensor([[0.0, 100.0]]), torch.zeros(1, 2, dtype=torch.bool))
    result = randaugment(torch.full((1, 3, 2, 2), 200 / 255), plan) * 255
    torch.testing.assert_close(result, torch.full((1, 3, 2, 2), 155.0))


def test_images_without_an_operation_keep_their_floats() -> None:
    given = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([[-1], [OPERATIONS.index("Posterize")]])
    plan = Plan(kinds, torch.full((2, 1), 8.0), torch.zeros(2, 1, dtype=torch.bool))
    result = randaugment(given.clone(), plan)
    assert torch.equal(result[0], given[0])
    torch.testing.assert_close(result[1] * 255, (given[1] * 255).round())


def test_a_view_places_it_where_its_order_says() -> None:
    batch = torch.full((64, 8, 8, 3), 90, dtype=torch.uint8)
    batch[..., 0] = 160

    def made(order: list[str]) -> Tensor:
        view = ViewSettings.model_validate(
            {
                "size": 8,
                "grayscale": 1.0,
                "randaugment": {"p": 1.0, "operations": 1},
                "order": ["crop", *order],
            }
        )
        plain = Normalization.model_validate("none")
        return MultiView([view], plain)(batch, torch.Generator().manual_seed(0))[0]

    last, first = made(["grayscale", "randaugment"]), made(["randaugment", "grayscale"])
    assert torch.equal(first.amin(1), first.amax(1))
    # The colour that fills uncovered pixels is no gray.
    assert not torch.equal(last.amin(1), last.amax(1))
    assert 0 <= last.min() <= last.max() <= 1


def test_plans_are_cut_with_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (30, 8, 8, 3), generator=chance, dtype=torch.uint8)
    view = ViewSettings.model_validate({"size": 8, "randaugment": {"p": 1.0}})
    maker = MultiView([view], Normalization())
    whole = maker(batch, torch.Generator().manual_seed(0))[0]
    monkeypatch.setattr(views, "CHUNK_PIXELS", 8 * 8 * 7)
    pieces = maker(batch, torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(pieces, whole)
