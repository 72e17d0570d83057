"""Groups by name, and an optimizer's state through a checkpoint."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.optim.build import build_optimizer, set_learning_rate
from transferbench.optim.settings import OptimizerSettings, ScheduleSettings

NAMES = ["sgd", "lars", "larc", "adam", "adamw", "adagrad", "rmsprop", "adam-then-sgd"]
SWITCH = {"switch_epoch": 1, "sgd_factor": 3.0}


def network() -> dict[str, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weights": [nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(3)],
        "bias-and-norm": [nn.Parameter(torch.randn(4, generator=generator))],
        "predictor": [],
    }


def settings(**given: Any) -> OptimizerSettings:
    if given.get("name") == "adam-then-sgd":
        given = SWITCH | given
    return OptimizerSettings.model_validate({"name": "sgd"} | given)


def descend(optimizer: torch.optim.Optimizer, steps: int, seed: int) -> list[Tensor]:
    """Take steps along random gradients; return all parameters."""
    generator = torch.Generator().manual_seed(seed)
    schedule = ScheduleSettings(name="cosine", warmup_epochs=1)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_learning_rate(optimizer, schedule, seed + step, steps_per_epoch=4, epochs=3)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def test_groups_differ_by_name_and_empty_ones_are_left_out() -> None:
    given = settings(
        name="lars",
        base_lr=0.4,
        weight_decay=1e-4,
        group=[
            {"name": "bias-and-norm", "weight_decay": 0, "adapt": False, "base_lr": 0.1},
            {"name": "predictor", "lr": 5.0},
        ],
    )
    weights, biases = build_optimizer(given, network(), batch_size=512).param_groups
    assert (weights["name"], weights["lr"], weights["weight_decay"]) == ("weights", 0.8, 1e-4)
    assert (biases["name"], biases["lr"], biases["weight_decay"]) == ("bias-and-norm", 0.2, 0)
    assert (weights["adapt"], biases["adapt"]) == (True, False)


def test_an_unknown_group_is_refused_with_the_nearest() -> None:
    given = settings(lr=1.0, group=[{"name": "bias-and-norms"}])
    with pytest.raises(UserError, match=r"'bias-and-norms'.*did you mean 'bias-and-norm'"):
        build_optimizer(given, network(), batch_size=256)


def test_a_group_follows_the_schedule_from_its_own_rate_unless_it_is_fixed() -> None:
    groups = network() | {"predictor": [nn.Parameter(torch.zeros(1))]}
    given = settings(
        lr=1.0,
        group=[{"name": "bias-and-norm", "lr": 0.5}, {"name": "predictor", "fixed_lr": True}],
    )
    optimizer = build_optimizer(given, groups, batch_size=256)
    schedule = ScheduleSettings(name="constant", warmup_epochs=1)
    first = set_learning_rate(optimizer, schedule, 1, steps_per_epoch=4, epochs=3)
    assert first == 0.25
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_descends(name: str) -> None:
    target = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    weight = nn.Parameter(torch.ones(6, 6))
    rate = 5.0 if name in ("lars", "larc") else 0.05
    optimizer = build_optimizer(settings(name=name, lr=rate), {"weights": [weight]}, batch_size=256)
    losses = []
    for _ in range(30):
        loss = (weight - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_state_survives_a_checkpoint_bit_for_bit(name: str) -> None:
    given = settings(
        name=name, lr=0.1, weight_decay=1e-3, group=[{"name": "bias-and-norm", "lr": 0.2}]
    )
    through = network()
    optimizer = build_optimizer(given, through, batch_size=256)
    descend(optimizer, 3, 0)
    middle = [p.detach().clone() for group in through.values() for p in group]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    expected = descend(optimizer, 4, 3)

    resumed = network()
    for parameter, value in zip((p for g in resumed.values() for p in g), middle, strict=True):
        parameter.data.copy_(value)
    again = build_optimizer(given, resumed, batch_size=256)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.param_groups[1]["peak_lr"] == 0.2
    assert all(torch.equal(a, b) for a, b in zip(expected, descend(again, 4, 3), strict=True))
