from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

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
from transferbench.methods.parts import plain_norm
from transferbench.methods.parts.plain_norm import norm_statistics, normalize
from transferbench.methods.twist import TWIST, confident_labels


def make(
    views: tuple[int, ...] = (16, 16), batch: int = BATCH, processes: int = 1, **settings: Any
) -> TWIST:
    context = Context(
        num_images=32,
        num_classes=None,
        view_sizes=views,
        batch_size=batch,
        total_steps=40,
        steps_per_epoch=4,
        epochs=10,
        world_size=processes,
    )
    chosen = {"head_hidden": 8, "classes": 4} | settings
    return TWIST(TWIST.Settings(**chosen), TinyNet(), context)


def test_the_norm_is_the_loss_s_and_its_statistics_move_after_the_step() -> None:
    method, data = build("twist"), Data("twist")
    views, batch = data.step(0)
    embeddings = detached(method.embed(views, batch))
    method.loss(embeddings, batch)
    assert not method.running_mean.any()
    method.after_step(embeddings, batch)
    reference = torch.nn.BatchNorm1d(10, affine=False)
    reference(embeddings["logits"].flatten(0, 1))
    torch.testing.assert_close(method.running_mean, reference.running_mean)
    torch.testing.assert_close(method.running_var, reference.running_var)


def test_a_single_image_is_classified_by_the_running_statistics() -> None:
    method, data = build("twist"), Data("twist")
    optimizer = optimizer_of(method)
    for step in range(STEPS_PER_EPOCH):
        train_step(method, optimizer, data, step)
    method.eval()
    images = data.step(1)[0][0]
    p = method.classify(images)
    logits = method.head(method.backbone(images)).detach()
    norm = torch.nn.BatchNorm1d(10, affine=False).eval()
    norm.running_mean, norm.running_var = method.running_mean, method.running_var
    torch.testing.assert_close(p, norm(logits).softmax(1))
    torch.testing.assert_close(method.classify(images[:1]), p[:1])
    method.settings = method.settings.model_copy(update={"last_norm": False})
    torch.testing.assert_close(method.classify(images), logits.softmax(1))


def test_each_group_of_images_is_normalized_for_itself() -> None:
    logits = torch.randn(8, 3, 5, dtype=torch.float64)
    mean, variance = norm_statistics(logits, 4)
    assert mean.shape == variance.shape == (2, 5)
    normalized = normalize(logits, mean, variance, 1e-12)
    for group in normalized.chunk(2):
        torch.testing.assert_close(group.mean((0, 1)), torch.zeros(5, dtype=torch.float64))
        torch.testing.assert_close(
            group.var((0, 1), correction=0), torch.ones(5, dtype=torch.float64)
        )


def test_a_group_may_span_some_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, place = torch.randn(8, 2, 3, dtype=torch.float64), threading.local()
    barrier, summands = threading.Barrier(4, timeout=10), [torch.zeros(())] * 4

    def add_up(x: Tensor) -> Tensor:
        summands[place.rank] = x
        barrier.wait()
        total: Tensor = torch.stack(summands).sum(0)
        barrier.wait()
        return total

    statistics: dict[int, tuple[Tensor, Tensor]] = {}

    def process(rank: int) -> None:
        place.rank = rank
        statistics[rank] = norm_statistics(logits[2 * rank : 2 * rank + 2], 4)

    expected = norm_statistics(logits, 4)
    monkeypatch.setattr(plain_norm, "world_size", lambda: 4)
    monkeypatch.setattr(plain_norm, "rank", lambda: place.rank)
    monkeypatch.setattr(plain_norm, "sum_over_processes", add_up)
    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(4):
        for own, all_groups in zip(statistics[rank], expected, strict=True):
            torch.testing.assert_close(own[0], all_groups[rank // 2])


def test_every_crop_and_both_directions_carry_gradient() -> None:
    method, data = build("twist", last_norm=False), Data("twist")
    views, batch = data.step(0)
    logits = method.embed(views, batch)["logits"].detach().requires_grad_()
    method.loss({"logits": logits}, batch).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum((0, 2)) > 0).all()


def test_the_later_phase_trains_on_the_sure_crop_s_class() -> None:
    method, data = build("twist", last_norm=False, self_label_from_epoch=1), Data("twist")
    assert not method.self_labels(data.step(STEPS_PER_EPOCH - 1)[1])
    views, batch = data.step(STEPS_PER_EPOCH)
    assert method.self_labels(batch)
    logits = (5 * method.embed(views, batch)["logits"]).detach().requires_grad_()
    method.loss({"logits": logits}, batch).backward()
    sure = confident_labels(method.log_probabilities(logits), 0.5)
    rows = torch.arange(BATCH)
    assert sure.kept.sum() == BATCH // 2  # strictly above number 4 of 8
    assert logits.grad is not None
    assert not logits.grad[rows, sure.anchors].any()
    assert not logits.grad[~sure.kept].any()
    assert (logits.grad[sure.kept, 2].abs().sum(1) > 0).all()
    assert {"confident", "confidence_threshold"} <= method.logged.keys()


def test_nothing_is_learned_where_no_image_is_surer_than_the_others() -> None:
    method, data = build("twist:self-label"), Data("twist:self-label")
    batch = data.step(0)[1]
    logits = torch.zeros(BATCH, 3, 10, requires_grad=True)
    loss = method.loss({"logits": logits}, batch)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_quantile_follows_a_cosine_over_the_phase() -> None:
    method, data = build("twist", self_label_from_epoch=5), Data("twist")
    steps = (20, 30, 39)
    expected = [0.5, 0.55, 0.6 - 0.05 * (1 + math.cos(math.pi * 0.95))]
    assert [method.quantile(data.step(step)[1]) for step in steps] == pytest.approx(expected)


def test_one_class_for_all_is_seen_in_the_usage() -> None:
    method, data = build("twist", last_norm=False), Data("twist")
    views, batch = data.step(0)
    method(views, batch)
    assert float(method.logged["usage_entropy"]) > 0.4
    method.loss({"logits": torch.eye(10)[0].expand(BATCH, 3, 10)}, batch)
    assert float(method.logged["usage_entropy"]) == 0


def test_it_collapses_without_diversity_and_without_the_norm_that_stands_in_for_it() -> None:
    usage = {}
    for norm in (True, False):
        method, data = build("twist", diversity_weight=0.0, last_norm=norm), Data("twist")
        optimizer = torch.optim.Adam(method.parameters(), 1e-2)
        for step in range(50):
            train_step(method, optimizer, data, step)
        usage[norm] = float(method.logged["usage_entropy"])
    assert usage[False] < 0.5 < usage[True]


def test_recipes_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match=r"views: .* at least 2, .* give 1"):
        make(views=(16,))
    with pytest.raises(UserError, match=r"settings\.norm_images: 3 does not cut a batch of 8"):
        make(norm_images=3)
    with pytest.raises(UserError, match=r"norm_images: 4 .* batch of 12 images \(6 on each"):
        make(norm_images=4, batch=12, processes=2)
    with pytest.raises(UserError, match=r"settings\.self_label_from_epoch: 10 must be below"):
        make(self_label_from_epoch=10)
    with pytest.raises(UserError, match=r"settings\.self_label_quantiles"):
        make(self_label_quantiles=(0.5, 1.5))
