"""Two processes with half the batch each, against one process with the whole batch.

Where a method's source shares batch norm, negatives or Sinkhorn sums over processes
(`global_batch_norm`), both give the same losses and gradients, with every piece of state in use.
Where the source works per process (supervised: batch norm is local, gradients are averaged), two
processes equal the mean of the two halves, each taken alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance.bed import (
    BATCH,
    Data,
    build,
    cases,
    gradients,
    method_class,
    optimizer_of,
    share_batch_norm,
    train_step,
)
from tests.conformance.pair import RANKS, run_on_both
from transferbench.methods.parts.collectives import rank, world_size

METHODS = cases()
STEPS = 4

Trace = tuple[list[float], dict[str, Tensor], dict[str, Tensor]]


def train(name: str) -> Trace:
    """Losses of a few steps, the last one's gradients, and the parameters after it."""
    method = share_batch_norm(build(name, dtype=torch.float64, processes=world_size()))
    data = Data(name, dtype=torch.float64)
    optimizer = optimizer_of(method)
    losses = [train_step(method, optimizer, data, step) for step in range(STEPS)]
    return losses, gradients(method), dict(method.named_parameters())


def train_without_sharing(name: str) -> Trace:
    """As `train`, but with batch norm left local: what the shared statistics are there for."""
    method = build(name, dtype=torch.float64, processes=world_size())
    data = Data(name, dtype=torch.float64)
    optimizer = optimizer_of(method)
    losses = [train_step(method, optimizer, data, step) for step in range(STEPS)]
    return losses, gradients(method), dict(method.named_parameters())


def of_halves(name: str) -> tuple[float, dict[str, Tensor]]:
    """Mean loss and gradient over the halves of the first batch, each as a batch of its own."""
    losses, sums = [], dict[str, Tensor]()
    views, batch = Data(name, dtype=torch.float64).step(0)
    for start in range(0, BATCH, BATCH // RANKS):
        stop = start + BATCH // RANKS
        method = build(name, dtype=torch.float64)
        loss = method(tuple(view[start:stop] for view in views), batch.part(start, stop))
        loss.backward()
        losses.append(loss.item())
        for key, value in gradients(method).items():
            sums[key] = sums.get(key, torch.zeros_like(value)) + value / RANKS
    return sum(losses) / RANKS, sums


def one_step(name: str) -> tuple[float, dict[str, Tensor]]:
    method = share_batch_norm(build(name, dtype=torch.float64, processes=world_size()))
    loss = train_step(method, optimizer_of(method), Data(name, dtype=torch.float64), 0)
    return loss, gradients(method)


def close(actual: Any, expected: Any, what: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda m: f"{what}: {m}")


def mean_losses(replies: list[Any]) -> Tensor:
    return torch.tensor([reply[0] for reply in replies], dtype=torch.float64).mean(0)


# Nothing is normalised over the batch, and the masks are drawn for all processes' images.
WITHOUT_BATCH_NORM = ["mae"]
GLOBAL = [name for name in METHODS if method_class(name).global_batch_norm]


@pytest.mark.parametrize("name", [*GLOBAL, *WITHOUT_BATCH_NORM])
def test_two_processes_equal_one(name: str) -> None:
    losses, grads, parameters = train(name)
    replies = run_on_both(train, [(name,)] * RANKS)
    close(mean_losses(replies), torch.tensor(losses, dtype=torch.float64), "losses")
    for reply in replies:
        assert reply[1].keys() == grads.keys()
        for key, value in grads.items():
            close(reply[1][key], value, f"gradient of {key}")
        for key, value in parameters.items():
            close(reply[2][key], value.detach(), key)
    for key in parameters:
        assert torch.equal(replies[0][2][key], replies[1][2][key]), f"{key} differs by process"


@pytest.mark.parametrize("name", GLOBAL)
def test_the_comparison_notices_local_batch_norm(name: str) -> None:
    losses, _, _ = train(name)
    replies = run_on_both(train_without_sharing, [(name,)] * RANKS)
    apart = mean_losses(replies) - torch.tensor(losses, dtype=torch.float64)
    assert apart.abs().max() > 1e-6


@pytest.mark.parametrize("name", [name for name in METHODS if name not in GLOBAL])
def test_two_processes_equal_the_mean_of_their_halves(name: str) -> None:
    loss, grads = of_halves(name)
    replies = run_on_both(one_step, [(name,)] * RANKS)
    close(sum(reply[0] for reply in replies) / RANKS, loss, "loss")
    for reply in replies:
        for key, value in grads.items():
            close(reply[1][key], value, f"gradient of {key}")


def ranks() -> tuple[int, int]:
    return rank(), world_size()


def test_the_pair_really_is_two_processes() -> None:
    assert run_on_both(ranks, [(), ()]) == [[0, 2], [1, 2]]
    assert ranks() == (0, 1)
