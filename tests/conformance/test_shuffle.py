"""Methods that shuffle batch norm: two processes against one that imitates them.

Batch norm is local and the keys' images change places between processes, so two processes do not
equal one as it stands. They equal one whose groups of images are those of the two processes:
exactly, in training, with the same shuffle, queue and clusterings. Its loss is the mean over the
processes' images: one process's prototypes are not competitors of the other's (PCL). Running
statistics are each process's own; here they are held at their first values.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tests.conformance.bed import (
    BATCH,
    STEPS_PER_EPOCH,
    Data,
    build,
    cases,
    gradients,
    method_class,
    optimizer_of,
    train_step,
)
from tests.conformance.pair import RANKS, run_on_both
from tests.conformance.test_distributed import close, mean_losses, memories
from transferbench.methods.method import Method
from transferbench.methods.parts.collectives import rank, world_size
from transferbench.methods.parts.shuffle import SplitBatchNorm, draw_order

SHUFFLING = [name for name in cases() if method_class(name).shuffles_batch_norm]
STEPS = 6  # with 4 an epoch: into the second, which clusters anew

Result = tuple[list[float], dict[str, Tensor], dict[str, Tensor]]


def start(name: str) -> tuple[Method, Data, torch.optim.Optimizer]:
    method = build(name, dtype=torch.float64, processes=world_size())
    for module in method.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0
    return method, Data(name, dtype=torch.float64), optimizer_of(method)


def train(name: str) -> Result:
    """Losses, the last gradients, and all weights, queues and clusterings after it."""
    method, data, optimizer = start(name)
    losses = [train_step(method, optimizer, data, step) for step in range(STEPS)]
    return losses, gradients(method), state(method)


def train_unshuffled(name: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transferbench.methods.parts.momentum.draw_order", in_order)
        return train(name)


def in_order(images: Tensor, generator: torch.Generator) -> Tensor:
    return draw_order(images, generator).sort().values


def imitate(name: str) -> Result:
    """As `train`, on one process."""
    method, data, optimizer = start(name)
    losses = []
    for step in range(STEPS):
        if step % STEPS_PER_EPOCH == 0:
            embed_all = data.embed_all(method)
            method.before_epoch(step // STEPS_PER_EPOCH, embed_all, data.method_chance)
        views, batch = data.step(step)
        method.before_step(batch)
        embeddings = method.embed(views, batch)
        chance = batch.generator.get_state()
        shares = []
        for first in range(0, BATCH, BATCH // RANKS):
            batch.generator.set_state(chance)
            stop = first + BATCH // RANKS
            own = {key: value[first:stop] for key, value in embeddings.items()}
            shares.append(method.loss(own, batch.part(first, stop)))
        loss = torch.stack(shares).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        method.after_backward(batch)
        optimizer.step()
        method.after_step({key: value.detach() for key, value in embeddings.items()}, batch)
        losses.append(loss.item())
    return losses, gradients(method), state(method)


def state(method: Method) -> dict[str, Tensor]:
    weights = {key: value.detach() for key, value in method.named_parameters()}
    return weights | memories(method)


@pytest.fixture
def groups_of_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the groups of one process be those that two processes with half the batch each have."""
    interleaved = SplitBatchNorm.normalize

    def normalize(self: SplitBatchNorm, x: Tensor) -> Tensor:
        if not self.training:
            return interleaved(self, x)
        # Image j of process r is image 2 j + r; several patches of an image come one by one.
        places = torch.arange(len(x)).view(len(x) // BATCH, RANKS, -1).transpose(1, 2).flatten()
        return interleaved(self, x[places])[places.argsort()]

    monkeypatch.setattr(SplitBatchNorm, "normalize", normalize)


@pytest.mark.usefixtures("groups_of_two_processes")
@pytest.mark.parametrize("name", SHUFFLING)
def test_two_processes_equal_one_with_their_groups(name: str) -> None:
    losses, grads, kept = imitate(name)
    replies: list[Any] = run_on_both(train, [(name,)] * RANKS)
    close(mean_losses(replies), torch.tensor(losses, dtype=torch.float64), "losses")
    for _, their_grads, theirs in replies:
        for key, value in grads.items():
            close(their_grads[key], value, f"gradient of {key}")
        for key, value in kept.items():
            close(theirs[key], value, key)
    for key in kept:
        assert torch.equal(replies[0][2][key], replies[1][2][key]), f"{key} differs by process"


@pytest.mark.usefixtures("groups_of_two_processes")
@pytest.mark.parametrize("name", SHUFFLING)
def test_the_comparison_notices_keys_that_are_not_shuffled(name: str) -> None:
    losses, _, _ = imitate(name)
    replies = run_on_both(train_unshuffled, [(name,)] * RANKS)
    apart = mean_losses(replies) - torch.tensor(losses, dtype=torch.float64)
    assert apart.abs().max() > 1e-6


def order_of_rank() -> Tensor:
    """The order that a process draws with a generator of its own."""
    return draw_order(torch.zeros(BATCH // RANKS), torch.Generator().manual_seed(rank()))


def test_all_processes_get_one_order() -> None:
    first, second = run_on_both(order_of_rank, [(), ()])
    assert torch.equal(first, second)
    assert sorted(first.tolist()) == list(range(BATCH))
