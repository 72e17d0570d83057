"""LARS and LARC where the golden values do not look."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transferbench.optim.lars import LARS


def stepped(weight: Tensor, grads: list[Tensor], **options: Any) -> Tensor:
    parameter = nn.Parameter(weight.clone())
    optimizer = LARS([parameter], lr=options.pop("lr", 0.5), **options)
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


def tensors(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("norms", ["joint", "separate"])
@pytest.mark.parametrize("lr_inside", [False, True])
def test_tensors_of_one_group_do_not_mix(norms: str, lr_inside: bool) -> None:
    *weights, first, second = tensors(5)
    alone = [stepped(w, [first, second], norms=norms, lr_inside=lr_inside) for w in weights]
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = LARS(parameters, lr=0.5, norms=norms, lr_inside=lr_inside)
    for grad in (first, second):
        for parameter in parameters:
            parameter.grad = grad.clone()
        optimizer.step()
    for parameter, expected in zip(parameters, alone, strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=0)


def test_without_adaptation_it_is_sgd() -> None:
    weight, *grads = tensors(4)
    found = stepped(weight, grads, adapt=False, weight_decay=0.01)
    parameter = nn.Parameter(weight.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.5, momentum=0.9, weight_decay=0.01)
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(found, parameter.detach(), rtol=1e-12, atol=0)


def test_the_step_does_not_depend_on_the_gradients_scale() -> None:
    weight, *grads = tensors(3)
    found = stepped(weight, grads)
    assert not torch.equal(found, weight)
    scaled = stepped(weight, [1000 * grad for grad in grads])
    torch.testing.assert_close(found, scaled)


def test_a_zero_gradient_decays_in_the_joint_form_only() -> None:
    weight = tensors(1)[0]
    nothing = [torch.zeros_like(weight)]
    joint = stepped(weight, nothing, weight_decay=0.1)
    torch.testing.assert_close(joint, weight * (1 - 0.5 * 0.001))
    assert torch.equal(stepped(weight, nothing, weight_decay=0.1, norms="separate"), weight)


@pytest.mark.parametrize("norms", ["joint", "separate"])
def test_a_zero_weight_takes_the_plain_gradient(norms: str) -> None:
    weight, grad = tensors(2)
    nothing = torch.zeros_like(weight)
    found = stepped(nothing, [grad], weight_decay=0.1, norms=norms)
    torch.testing.assert_close(found, -0.5 * grad)


def test_the_separate_form_adds_the_norms() -> None:
    weight, grad = tensors(2)
    found = stepped(weight, [grad], weight_decay=0.3, norms="separate")
    ratio = 0.001 * weight.norm() / (grad.norm() + 0.3 * weight.norm())
    torch.testing.assert_close(found, weight - 0.5 * ratio * (grad + 0.3 * weight))


def test_clipping_never_exceeds_plain_sgd() -> None:
    weight, grad = tensors(2)
    tiny = 1e-3 * grad
    free = stepped(weight, [tiny], norms="separate", eta=0.5)
    clipped = stepped(weight, [tiny], norms="separate", eta=0.5, clip=True)
    torch.testing.assert_close(clipped, weight - 0.5 * tiny)
    assert (free - weight).norm() > 10 * (clipped - weight).norm()


@pytest.mark.parametrize("lr_inside", [False, True])
def test_a_rate_of_zero_moves_nothing(lr_inside: bool) -> None:
    weight, grad = tensors(2)
    for options in ({}, {"norms": "separate", "clip": True}):
        assert torch.equal(stepped(weight, [grad], lr=0.0, lr_inside=lr_inside, **options), weight)


def test_gradients_are_left_as_they_are_and_missing_ones_skipped() -> None:
    weight, grad = tensors(2)
    moved, still = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    for adapt in (True, False):
        optimizer = LARS([moved, still], lr=0.5, adapt=adapt)
        moved.grad = grad.clone()
        optimizer.step()
        optimizer.step()
        assert torch.equal(moved.grad, grad)
    assert torch.equal(still.detach(), weight)
    assert not torch.equal(moved.detach(), weight)
