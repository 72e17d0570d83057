from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.bed import (
    BATCH,
    STEPS_PER_EPOCH,
    Data,
    TinyNet,
    build,
    detached,
    optimizer_of,
    train_step,
)
from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.swav import SwAV


def make(views: tuple[int, ...] = (16, 16), processes: int = 1, **settings: Any) -> SwAV:
    context = Context(
        num_images=32,
        num_classes=None,
        view_sizes=views,
        batch_size=BATCH,
        total_steps=4,
        steps_per_epoch=4,
        epochs=1,
        world_size=processes,
    )
    return SwAV(SwAV.Settings(**settings), TinyNet(), context)


def test_prototypes_have_unit_length_in_every_forward_pass() -> None:
    method, data = build("swav"), Data("swav")
    optimizer = optimizer_of(method, lr=0.5)
    for step in range(3):
        train_step(method, optimizer, data, step)
    assert not torch.allclose(method.prototypes.weight.norm(dim=1), torch.ones(10), atol=1e-4)
    method.before_step(data.step(3)[1])
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(10))


def test_embeddings_are_unit_rows_by_view() -> None:
    method, data = build("swav"), Data("swav")
    views, batch = data.step(0)
    z = method.embed(views, batch)["z"]
    assert z.shape == (BATCH, 4, 16)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(BATCH, 4))


@pytest.mark.parametrize(
    ("settings", "frozen_steps"),
    [
        ({"freeze_prototypes_steps": 3}, 3),
        ({"freeze_prototypes_steps": None, "freeze_prototypes_epochs": 1}, STEPS_PER_EPOCH),
        ({"freeze_prototypes_steps": 0}, 0),
    ],
)
def test_frozen_prototypes_neither_move_nor_gather_momentum(
    settings: dict[str, int | None], frozen_steps: int
) -> None:
    method, data = build("swav", **settings), Data("swav")
    method.before_step(data.step(0)[1])
    start = method.prototypes.weight.clone()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    moved = []
    for step in range(STEPS_PER_EPOCH + 1):
        train_step(method, optimizer, data, step)
        moved.append(not torch.allclose(method.prototypes.weight, start, atol=1e-6))
        if step < frozen_steps:
            assert not optimizer.state[method.prototypes.weight].get("momentum_buffer")
    assert moved == [step >= frozen_steps for step in range(STEPS_PER_EPOCH + 1)]


def test_the_queue_waits_for_its_epoch_and_is_used_once_full() -> None:
    method, data = build("swav", queue_from_epoch=1, queue_length=2 * BATCH + 3), Data("swav")
    assert method.queues.shape == (2, 2 * BATCH, 16)  # rounded down to whole batches
    optimizer = optimizer_of(method)
    used = []
    for step in range(STEPS_PER_EPOCH + 4):
        used.append(method.queue_is_used(data.step(step)[1]))
        train_step(method, optimizer, data, step)
    assert used == [False] * (STEPS_PER_EPOCH + 2) + [True, True]


def test_each_code_view_has_a_queue_with_the_newest_on_top() -> None:
    method, data = build("swav"), Data("swav")
    for step in range(2):
        views, batch = data.step(step)
        embeddings = detached(method.embed(views, batch))
        method.after_step(embeddings, batch)
    for queue, view in zip(method.queues, (0, 1), strict=True):
        torch.testing.assert_close(queue[:BATCH], embeddings["z"][:, view])
        assert queue[BATCH:].abs().sum() > 0


def test_queue_rows_are_shared_out_over_processes() -> None:
    assert make(processes=2, queue_length=4 * BATCH).queues.shape[1] == 2 * BATCH


def test_usage_entropy_falls_to_zero_when_one_prototype_takes_all() -> None:
    method, data = build("swav", freeze_prototypes_steps=0), Data("swav")
    views, batch = data.step(0)
    method.before_step(batch)
    method.loss(method.embed(views, batch), batch)
    assert 0.3 < float(method.logged["usage_entropy"]) <= 1
    same = torch.nn.functional.normalize(torch.ones(BATCH, 4, 16), dim=-1)
    method.loss({"z": same}, batch)
    assert float(method.logged["usage_entropy"]) == 0


def test_recipes_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="at least 2 views"):
        make(views=(16,))
    with pytest.raises(UserError, match=r"settings\.code_views: \[0, 2\] .* out of 0 to 1"):
        make(code_views=(0, 2))
    with pytest.raises(UserError, match=r"settings\.code_views: \[1, 1\]"):
        make(code_views=(1, 1))
    with pytest.raises(UserError, match=r"settings\.queue_length: 4 is less than one batch of 8"):
        make(queue_length=4)


def test_usage_is_told_once_the_prototypes_may_move() -> None:
    method, data = build("swav", freeze_prototypes_steps=2), Data("swav")
    told = []
    for views, batch in map(data.step, range(3)):
        method.logged.clear()
        method(views, batch)
        told.append("usage_entropy" in method.logged)
    assert told == [False, False, True]
