"""Two processes with half the batch each, against one process with the whole batch.

Where a method's source shares batch norm, negatives or Sinkhorn sums over processes
(`global_batch_norm`), both give the same losses and gradients, with every piece of state in use.
Where the source works per process (batch norm is local, gradients are averaged; a bank of all
images is equal on all, and negatives are drawn as one process would), two processes equal one
that passes the halves of its batch apart: `test_two_processes_equal_one_that_passes...`. Methods
that shuffle images between processes (`shuffles_batch_norm`) are in `test_shuffle`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance.bed import (
    STEPS_PER_EPOCH,
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
from transferbench.methods.method import Method
from transferbench.methods.parts.collectives import rank, world_size
from transferbench.methods.parts.gradient_cache import cached_gradients

METHODS = cases()
STEPS = 6  # with 4 an epoch: into the second, which clusters what the first left

Trace = tuple[list[float], dict[str, Tensor], dict[str, Tensor]]


def train(name: str) -> Trace:
    """Losses of a few steps, the last one's gradients, and the parameters after it."""
    return _train(name)[1]


def _train(name: str) -> tuple[Method, Trace]:
    method = share_batch_norm(build(name, dtype=torch.float64, processes=world_size()))
    data = Data(name, dtype=torch.float64)
    optimizer = optimizer_of(method)
    losses = [train_step(method, optimizer, data, step) for step in range(STEPS)]
    return method, (losses, gradients(method), dict(method.named_parameters()))


def train_without_sharing(name: str) -> Trace:
    """As `train`, but with batch norm left local: what the shared statistics are there for."""
    method = build(name, dtype=torch.float64, processes=world_size())
    data = Data(name, dtype=torch.float64)
    optimizer = optimizer_of(method)
    losses = [train_step(method, optimizer, data, step) for step in range(STEPS)]
    return losses, gradients(method), dict(method.named_parameters())


def train_in_halves(name: str) -> tuple[Trace, dict[str, Tensor]]:
    """As `train`, on one process that passes the halves apart but takes the loss of the whole.

    Also returns what is kept beside the weights, running statistics left out.
    """
    method, data = build(name, dtype=torch.float64), Data(name, dtype=torch.float64)
    optimizer = optimizer_of(method)
    losses = []
    for step in range(STEPS):
        if step % STEPS_PER_EPOCH == 0:
            embed_all = data.embed_all(method)
            method.before_epoch(step // STEPS_PER_EPOCH, embed_all, data.method_chance)
        views, batch = data.step(step)
        method.before_step(batch)
        optimizer.zero_grad(set_to_none=True)
        loss, embeddings = cached_gradients(method, views, batch, RANKS)
        method.after_backward(batch)
        optimizer.step()
        method.after_step(embeddings, batch)
        losses.append(loss.item())
    return (losses, gradients(method), dict(method.named_parameters())), memories(method)


def train_with_memories(name: str) -> tuple[Trace, dict[str, Tensor]]:
    method, trace = _train(name)
    return trace, memories(method)


def memories(method: Method) -> dict[str, Tensor]:
    """Queues, banks and the like: every buffer but batch norm's, which are each process's own."""
    norms = ("running_mean", "running_var", "num_batches_tracked")
    return {key: value for key, value in method.named_buffers() if not key.endswith(norms)}


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


SHUFFLING = [name for name in METHODS if method_class(name).shuffles_batch_norm]
LOCAL = [name for name in METHODS if name not in GLOBAL + SHUFFLING]


@pytest.mark.parametrize("name", LOCAL)
def test_two_processes_equal_one_that_passes_the_halves_apart(name: str) -> None:
    (losses, grads, parameters), kept = train_in_halves(name)
    replies = run_on_both(train_with_memories, [(name,)] * RANKS)
    traces = [reply[0] for reply in replies]
    close(mean_losses(traces), torch.tensor(losses, dtype=torch.float64), "losses")
    for trace, (_, theirs) in zip(traces, replies, strict=True):
        for key, value in grads.items():
            close(trace[1][key], value, f"gradient of {key}")
        for key, value in parameters.items():
            close(trace[2][key], value.detach(), key)
        for key, value in kept.items():
            close(theirs[key], value, key)
    for key in kept:
        assert torch.equal(replies[0][1][key], replies[1][1][key]), f"{key} differs by process"


def ranks() -> tuple[int, int]:
    return rank(), world_size()


def test_the_pair_really_is_two_processes() -> None:
    assert run_on_both(ranks, [(), ()]) == [[0, 2], [1, 2]]
    assert ranks() == (0, 1)
