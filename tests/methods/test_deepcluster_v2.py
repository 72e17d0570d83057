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
    detached,
    optimizer_of,
    train_step,
)
from transferbench.errors import UserError
from transferbench.methods.deepcluster_v2 import DeepClusterV2
from transferbench.methods.method import Context
from transferbench.methods.parts import spherical_kmeans as kmeans
from transferbench.methods.parts.cluster_labels import MISSING, label_balance


def make(images: int = IMAGES, views: tuple[int, ...] = (16, 16), **settings: Any) -> DeepClusterV2:
    context = Context(
        num_images=images,
        num_classes=None,
        view_sizes=views,
        batch_size=BATCH,
        total_steps=images // BATCH,
        steps_per_epoch=images // BATCH,
        epochs=1,
    )
    chosen = {"projector_hidden": 24, "projector_output": 16, "prototypes": (3,)} | settings
    return DeepClusterV2(DeepClusterV2.Settings(**chosen), TinyNet(), context)


def begin(method: Any, data: Data, epoch: int = 0) -> None:
    method.before_epoch(epoch, data.embed_all(method), data.method_chance)


def test_the_first_clustering_is_of_augmented_views_in_training_mode() -> None:
    method, data = build("deepcluster-v2"), Data("deepcluster-v2")
    statistics = method.get_buffer("backbone.layers.1.running_mean")
    begin(method, data)
    assert not torch.equal(statistics, torch.zeros_like(statistics))
    views, batch = data.step(1)
    rows = method.bank.rows[:, BATCH : 2 * BATCH]
    with torch.no_grad():
        expected = method.embed_bank_views(views).transpose(0, 1)
    torch.testing.assert_close(rows, expected)
    assert torch.equal(method.bank.index[BATCH : 2 * BATCH], batch.indices)


def test_labels_are_the_nearest_centroid_of_an_image_s_row_in_the_head_s_bank() -> None:
    method, data = build("deepcluster-v2"), Data("deepcluster-v2")
    begin(method, data)
    # As if the images had come in another order.
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(3))
    method.bank.index.copy_(order)
    begin(method, data, epoch=1)
    for head, view in enumerate((0, 1, 0)):
        scores = method.bank.rows[view] @ method.prototypes[head].T
        assert torch.equal(method.labels[head][order], scores.argmax(1))
    assert not torch.equal(method.labels[0], method.labels[2])


def test_labels_hold_for_an_epoch_while_the_bank_is_overwritten() -> None:
    method, data = build("deepcluster-v2"), Data("deepcluster-v2")
    optimizer = optimizer_of(method)
    train_step(method, optimizer, data, 0)
    labels, rows = method.labels.clone(), method.bank.rows.clone()
    prototypes = [own.clone() for own in method.prototypes]
    for step in range(1, STEPS_PER_EPOCH):
        train_step(method, optimizer, data, step)
    assert torch.equal(method.labels, labels)
    assert all(map(torch.equal, method.prototypes, prototypes))
    assert not torch.isclose(method.bank.rows, rows).all(-1)[:, BATCH:].any()
    train_step(method, optimizer, data, STEPS_PER_EPOCH)
    assert not torch.equal(method.labels, labels)


def test_images_of_a_dropped_last_batch_have_no_label_and_no_part_in_the_loss() -> None:
    method = make(images=BATCH + 3)
    z = torch.nn.functional.normalize(torch.randn(BATCH + 3, 2, 16), dim=-1)
    method.before_epoch(
        0,
        lambda function, **options: (torch.arange(BATCH + 3), z),
        torch.Generator(),
    )
    assert (method.labels[0, :BATCH] >= 0).all()
    assert (method.labels[0, BATCH:] == MISSING).all()
    batch = Data("deepcluster-v2").step(0)[1]
    known = method.loss({"z": z[:4]}, batch.part(0, 4))
    mixed = torch.arange(BATCH - 2, BATCH + 2)
    some = method.loss({"z": z[mixed]}, type(batch)(**{**vars(batch), "indices": mixed}))
    first = method.loss({"z": z[mixed[:2]]}, type(batch)(**{**vars(batch), "indices": mixed[:2]}))
    assert known.isfinite()
    torch.testing.assert_close(some, first)


def test_a_last_batch_of_one_image_does_not_keep_the_bank_from_being_filled() -> None:
    method = make(images=BATCH + 1)
    walked = []

    def walk(function: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = []
        for images in (BATCH, 1):
            outputs.append(function((torch.randn(images, 3, 16, 16),) * 2))
            walked.append(len(outputs[-1]))
        return torch.arange(BATCH + 1), torch.cat(outputs)

    method.before_epoch(0, walk, torch.Generator())
    assert walked == [BATCH, 1]
    assert method.bank.index.tolist() == list(range(BATCH))
    torch.testing.assert_close(method.bank.rows.norm(dim=2), torch.ones(2, BATCH))


def test_a_batch_without_any_label_costs_nothing_and_moves_nothing() -> None:
    method, data = build("deepcluster-v2"), Data("deepcluster-v2")
    views, batch = data.step(0)
    loss = method(views, batch)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in method.backbone.parameters() if p.grad is not None)


def test_centroids_belong_to_no_group_of_the_optimizer() -> None:
    method = build("deepcluster-v2")
    trained = {id(p) for group in method.parameter_groups().values() for p in group}
    assert not trained & {id(own) for own in method.prototypes}
    assert "prototypes.2" in method.state_dict()


def test_rows_are_clustered_in_blocks_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.nn.functional.normalize(torch.randn(50, 4, dtype=torch.float64), dim=1)
    whole = kmeans.spherical_kmeans(rows, rows[:7], 5)
    monkeypatch.setattr(kmeans, "BLOCK", 7 * 8)
    for one, other in zip(whole, kmeans.spherical_kmeans(rows, rows[:7], 5), strict=True):
        torch.testing.assert_close(one, other)


def test_the_balance_is_that_of_the_worst_labeling() -> None:
    even = torch.arange(12) % 3
    one_class = torch.where(torch.arange(12) < 2, MISSING, 1)
    usage, smallest, largest = label_balance(torch.stack([even, one_class]), (3, 3)).tolist()
    assert (usage, smallest, largest) == (0, 0, 10)
    assert label_balance(even[None], (3,)).tolist() == pytest.approx([1, 4, 4])


def test_a_step_in_the_second_epoch_writes_its_own_rows() -> None:
    method, data = build("deepcluster-v2"), Data("deepcluster-v2")
    views, batch = data.step(STEPS_PER_EPOCH + 2)
    embeddings = detached(method.embed(views, batch))
    method.after_step(embeddings, batch)
    rows = slice(2 * BATCH, 3 * BATCH)
    assert torch.equal(method.bank.rows[1, rows], embeddings["z"][:, 1])
    assert method.bank.index.tolist().count(-1) == IMAGES - BATCH


def test_recipes_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match=r"settings\.prototypes: .* find 33 clusters in 32 images"):
        make(prototypes=(3, 33))
    with pytest.raises(UserError, match=r"settings\.bank_views: \[0, 1\] .* out of 0 to 0"):
        make(views=(16,))
    with pytest.raises(UserError, match=r"settings\.bank_views: \[1, 1\]"):
        make(bank_views=(1, 1))
