"""Adam up to the switch, SGD after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transferbench.optim.build import build_optimizer, set_learning_rate
from transferbench.optim.settings import OptimizerSettings, ScheduleSettings

CONSTANT = ScheduleSettings(name="constant")
STEPS_PER_EPOCH = 3
SWITCH = 2 * STEPS_PER_EPOCH


def gradients(count: int, start: int = 0) -> list[Tensor]:
    return [
        torch.randn(4, 3, generator=torch.Generator().manual_seed(start + n), dtype=torch.float64)
        for n in range(count)
    ]


def switching(weight: nn.Parameter, **group: Any) -> torch.optim.Optimizer:
    settings = OptimizerSettings.model_validate(
        {
            "name": "adam-then-sgd",
            "lr": 0.01,
            "switch_epoch": 2,
            "sgd_factor": 20.0,
            "weight_decay": 0.1,
            "group": [{"name": "weights"} | group],
        }
    )
    return build_optimizer(settings, {"weights": [weight]}, batch_size=256)


def walk(optimizer: torch.optim.Optimizer, grads: list[Tensor], first: int = 0) -> list[Tensor]:
    """Step along gradients, the first of them in step `first`; return the weights after each."""
    weight = optimizer.param_groups[0]["params"][0]
    after = []
    for step, grad in enumerate(grads, first):
        set_learning_rate(optimizer, CONSTANT, step, steps_per_epoch=STEPS_PER_EPOCH, epochs=5)
        weight.grad = grad.clone()
        optimizer.step()
        after.append(weight.detach().clone())
    return after


def start() -> nn.Parameter:
    return nn.Parameter(gradients(1, 99)[0])


def test_it_is_adam_then_sgd_begun_at_the_switch() -> None:
    grads = gradients(10)
    found = walk(switching(start()), grads)
    weight = start()
    adam = torch.optim.Adam([weight], lr=0.01, weight_decay=0.1)
    for step, grad in enumerate(grads[:SWITCH]):
        weight.grad = grad.clone()
        adam.step()
        torch.testing.assert_close(found[step], weight.detach(), rtol=1e-12, atol=0)
    sgd = torch.optim.SGD([weight], lr=0.2, weight_decay=0.1, momentum=0.9)
    for step, grad in enumerate(grads[SWITCH:], SWITCH):
        weight.grad = grad.clone()
        sgd.step()
        torch.testing.assert_close(found[step], weight.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("at", [1, SWITCH - 1, SWITCH, SWITCH + 1, 9])
def test_it_continues_on_either_side_of_the_switch(at: int) -> None:
    grads = gradients(10)
    expected = walk(switching(start()), grads)
    optimizer = switching(start())
    middle = walk(optimizer, grads[:at])[-1]
    again = switching(nn.Parameter(middle))
    again.load_state_dict(optimizer.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(expected[at:], walk(again, grads[at:], at), strict=True)
    )


def test_the_factor_applies_to_a_fixed_rate_once() -> None:
    optimizer = switching(start(), fixed_lr=True)
    walk(optimizer, gradients(SWITCH))
    assert optimizer.param_groups[0]["lr"] == 0.01
    walk(optimizer, gradients(3), SWITCH)
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_the_switch_counts_the_runs_steps_not_those_of_a_phase() -> None:
    straight, phased = switching(start()), switching(start())
    grads = gradients(10)
    expected = walk(straight, grads)
    # A phase with a schedule of its own counts its steps from 0 again.
    found = [*walk(phased, grads[:4]), *walk(phased, grads[4:])]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_parameter_without_gradient_stays() -> None:
    weight, still = start(), start()
    settings = OptimizerSettings(name="adam-then-sgd", lr=0.1, switch_epoch=1, sgd_factor=1.0)
    optimizer = build_optimizer(settings, {"weights": [weight, still]}, batch_size=256)
    for _ in range(2):
        walk(optimizer, gradients(STEPS_PER_EPOCH))
    assert torch.equal(still.detach(), start().detach())
    assert not torch.equal(weight.detach(), start().detach())
