from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conformance.bed import (
    BATCH,
    Data,
    build,
    detached,
    optimizer_of,
    share_batch_norm,
    train_step,
)
from tests.conformance.pair import run_on_both
from transferbench.errors import UserError
from transferbench.methods.parts.collectives import world_size
from transferbench.methods.simclr_v2 import SimCLRv2

MEMORY = "simclr-v2:memory"


def test_the_loss_is_that_of_the_first_version() -> None:
    views, batch = Data("simclr-v2").step(0)
    embeddings = build("simclr-v2").embed(views, batch)
    expected = build("simclr-v1").loss(embeddings, batch)
    assert torch.equal(build("simclr-v2").loss(embeddings, batch), expected)


def test_fine_tuning_starts_behind_as_many_layers_of_the_head_as_asked_for() -> None:
    method = build("simclr-v2").eval()
    assert isinstance(method, SimCLRv2)
    images = Data("simclr-v2").images[:4]
    features = method.backbone(images)
    assert torch.equal(method.fine_tuning_network(0)(images), features)
    linear, norm, relu = method.projector[:3]
    assert isinstance(relu, nn.ReLU)
    start = method.fine_tuning_network()
    assert torch.equal(start(images), relu(norm(linear(features))))
    assert torch.equal(method.fine_tuning_network(3)(images), method.projector(features))
    owned = {id(p) for p in method.parameters()}
    assert {id(p) for p in start.parameters()} <= owned


def test_without_a_memory_there_is_no_second_network() -> None:
    names = build("simclr-v2").state_dict()
    assert not any(name.startswith("momentum") or name == "memory" for name in names)


def test_keys_come_from_a_network_that_lags_behind() -> None:
    method, data = build(MEMORY, memory_momentum=0.5), Data(MEMORY)
    before = method.projector[0].weight.detach().clone()
    train_step(method, optimizer_of(method), data, 0)
    assert torch.equal(method.momentum_projector[0].weight, before)
    method.before_step(data.step(1)[1])
    middle = 0.5 * before + 0.5 * method.projector[0].weight.detach()
    torch.testing.assert_close(method.momentum_projector[0].weight, middle)
    assert not any(p.requires_grad for p in method.momentum_backbone.parameters())


def test_the_memory_holds_the_newest_keys_of_both_views_on_top() -> None:
    method, data = build(MEMORY), Data(MEMORY)
    torch.testing.assert_close(method.memory.norm(dim=1), torch.ones(3 * BATCH))
    before = method.memory.clone()
    views, batch = data.step(0)
    embeddings = detached(method.embed(views, batch))
    method.loss(embeddings, batch)
    assert torch.equal(method.memory, before)
    method.after_step(embeddings, batch)
    keys = F.normalize(embeddings["keys"], dim=-1)
    torch.testing.assert_close(method.memory[: 2 * BATCH], keys.reshape(2 * BATCH, -1))
    assert torch.equal(method.memory[2 * BATCH :], before[:BATCH])


def test_each_view_must_find_the_key_of_the_other() -> None:
    method = build(MEMORY, temperature=0.05)
    _, batch = Data(MEMORY).step(0)
    z = torch.randn(BATCH, 2, 16)
    swapped = method.loss({"z": z, "keys": z.flip(1)}, batch)
    same = method.loss({"z": z, "keys": z}, batch)
    assert float(swapped) < 0.1 < float(same)


def memory_after_training() -> Tensor:
    method = share_batch_norm(build(MEMORY, dtype=torch.float64, processes=world_size()))
    data, optimizer = Data(MEMORY, dtype=torch.float64), None
    optimizer = optimizer_of(method)
    for step in range(3):
        train_step(method, optimizer, data, step)
    return method.get_buffer("memory")


def test_both_processes_hold_the_memory_that_one_would() -> None:
    alone = memory_after_training()
    for memory in run_on_both(memory_after_training, [(), ()]):
        torch.testing.assert_close(memory, alone, rtol=1e-9, atol=1e-9)


def test_a_memory_below_the_keys_of_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"settings\.memory_size: 15 is less than the 16 keys"):
        build(MEMORY, memory_size=15)
    build(MEMORY, memory_size=16)
