from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.bed import (
    BATCH,
    IMAGES,
    STEPS_PER_EPOCH,
    Data,
    TinyNet,
    build,
    optimizer_of,
    train_step,
)
from tests.conformance.pair import run_on_both
from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.parts import spherical_kmeans as blockwise
from transferbench.methods.parts.cluster_labels import MISSING
from transferbench.methods.parts.transport import balanced_transport
from transferbench.methods.sela_v2 import SeLaV2


def train(method: Any, steps: int) -> Data:
    data, optimizer = Data("sela-v2"), optimizer_of(method)
    for step in range(steps):
        train_step(method, optimizer, data, step)
    return data


def class_counts(method: Any, head: int) -> list[int]:
    classes = method.settings.prototypes[head]
    counts: list[int] = torch.bincount(method.labels[head], minlength=classes).tolist()
    return counts


def test_the_first_epoch_trains_on_random_balanced_labels() -> None:
    method = build("sela-v2", first_labels="random")
    labels = method.labels.clone()
    assert class_counts(method, 0) == [7, 7, 6, 6, 6]
    # Each head has an order of its own.
    assert not torch.equal(labels[0], torch.arange(IMAGES) % 5)
    assert not torch.equal(labels[0] % 4, labels[1])
    assert method.balance.tolist() == pytest.approx([1, 5, 8])
    data = train(method, STEPS_PER_EPOCH)
    assert torch.equal(method.labels, labels)
    train_step(method, optimizer_of(method), data, STEPS_PER_EPOCH)
    assert not torch.equal(method.labels, labels)


def test_or_on_those_of_the_untrained_network() -> None:
    method = build("sela-v2")
    labels = method.labels.clone()
    train(method, 1)
    assert not torch.equal(method.labels, labels)
    assert max(class_counts(method, 0)) <= 8


def test_labels_come_from_the_bank_and_the_prototypes_of_the_moment() -> None:
    method = build("sela-v2")
    data = train(method, STEPS_PER_EPOCH)
    rows, prototypes = method.bank.rows.clone(), [own.detach().clone() for own in method.prototypes]
    method.before_epoch(1, data.embed_all(method), data.method_chance)
    for head, view in enumerate((0, 1, 0)):
        unit = torch.nn.functional.normalize(prototypes[head], dim=1)
        log_p = (rows[view] @ unit.T / 0.1).log_softmax(1)
        plan, _ = balanced_transport(log_p, 10.0, iterations=1000, tolerance=0.01)
        assert torch.equal(method.labels[head][method.bank.index], plan.argmax(1))


def test_prototypes_learn_and_have_unit_length_in_every_forward_pass() -> None:
    method = build("sela-v2")
    start = [own.detach().clone() for own in method.prototypes]
    data = train(method, 2)
    assert not any(map(torch.allclose, method.prototypes, start))
    method.before_step(data.step(2)[1])
    for own in method.prototypes:
        torch.testing.assert_close(own.norm(dim=1), torch.ones(len(own)))


def test_soft_labels_are_the_plan_s_shares_of_an_image() -> None:
    method = build("sela-v2", soft_labels=True)
    assert torch.equal(method.soft_labels0.argmax(1), method.labels[0])
    train(method, 1)
    for head in range(3):
        soft = method.get_buffer(f"soft_labels{head}")
        torch.testing.assert_close(soft.sum(1), torch.ones(IMAGES))
        assert torch.equal(soft.argmax(1), method.labels[head])
        assert (soft.max(1).values < 0.99).any()


def test_images_outside_the_bank_lose_their_label() -> None:
    method = build("sela-v2", soft_labels=True)
    z = torch.nn.functional.normalize(torch.randn(IMAGES, 2, 16), dim=-1)
    method.bank.write(0, torch.arange(IMAGES) // 2, z)
    method.assign_labels()
    assert (method.labels[:, IMAGES // 2 :] == MISSING).all()
    assert (method.labels[:, : IMAGES // 2] >= 0).all()
    batch = Data("sela-v2").step(STEPS_PER_EPOCH - 1)[1]
    assert method.loss({"z": z[:BATCH]}, batch) == 0


def test_the_original_s_label_times_fall_inside_epochs() -> None:
    method = build("sela-v2", label_updates=12)
    data = Data("sela-v2")
    due = [step for step in range(12) if method.is_label_time(data.step(step)[1])]
    # 11.01 (i / 11)^2 epochs of four steps: 0, 0.09, 0.36, 0.82, 1.46, 2.28.
    assert due == [0, 1, 2, 4, 6, 10]
    always = build("sela-v2")
    assert not any(always.is_label_time(data.step(step)[1]) for step in range(12))


def test_only_label_times_change_labels_where_the_original_s_are_asked_for() -> None:
    method = build("sela-v2", label_updates=12)
    data, optimizer = Data("sela-v2"), optimizer_of(method, lr=0.5)
    changed = []
    for step in range(8):
        before = method.labels.clone()
        train_step(method, optimizer, data, step)
        changed.append(not torch.equal(method.labels, before))
    assert changed == [step in (0, 1, 2, 4, 6) for step in range(8)]


def test_the_transport_needs_no_more_memory_than_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    log_p = torch.randn(23, 4, dtype=torch.float64).log_softmax(1)
    whole = balanced_transport(log_p, 5.0, iterations=30)
    monkeypatch.setattr(blockwise, "BLOCK", 4 * 5)
    torch.testing.assert_close(balanced_transport(log_p, 5.0, iterations=30).log_plan, whole[0])
    assert whole.repeats == 30


def plan_of(log_p: torch.Tensor, tolerance: float) -> list[torch.Tensor]:
    log_plan, repeats = balanced_transport(log_p, 8.0, iterations=500, tolerance=tolerance)
    return [log_plan, torch.tensor(repeats)]


def test_a_split_bank_gives_the_plan_of_one() -> None:
    log_p = (3 * torch.randn(24, 4, dtype=torch.float64)).log_softmax(1)
    plan, repeats = plan_of(log_p, 0.05)
    replies = run_on_both(plan_of, [(half, 0.05) for half in log_p.chunk(2)])
    torch.testing.assert_close(torch.cat([reply[0] for reply in replies]), plan)
    assert [int(reply[1]) for reply in replies] == [int(repeats)] * 2
    assert 1 < int(repeats) < 500


def test_recipes_that_cannot_work_are_refused() -> None:
    context = Context(
        num_images=IMAGES,
        num_classes=None,
        view_sizes=(16, 16),
        batch_size=BATCH,
        total_steps=4,
        steps_per_epoch=4,
        epochs=1,
    )
    with pytest.raises(UserError, match=r"settings\.prototypes: sela-v2 .* 3000 clusters in 32"):
        SeLaV2(SeLaV2.Settings(), TinyNet(), context)
    with pytest.raises(UserError, match=r"settings\.bank_views: \[0, 5\]"):
        SeLaV2(SeLaV2.Settings(prototypes=(3,), bank_views=(0, 5)), TinyNet(), context)
