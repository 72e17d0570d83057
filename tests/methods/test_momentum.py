"""Momentum contrast and PCL: what golden values and conformance leave open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conformance.bed import (
    BATCH,
    IMAGES,
    STEPS_PER_EPOCH,
    Data,
    TinyNet,
    build,
    detached,
    method_class,
    optimizer_of,
    train_step,
)
from tests.golden.adapters_momentum import equal_encoders_start
from transferbench.errors import UserError
from transferbench.methods.method import Context, Method
from transferbench.methods.parts.kmeans import KMeansSearch, kmeans, lloyd, nearest
from transferbench.methods.parts.prototypes import NONE, Clustering, concentration
from transferbench.methods.parts.queue import enqueue
from transferbench.methods.parts.shuffle import SplitBatchNorm, split_batch_norm

METHODS = ["moco-v1", "moco-v2", "pcl-v1", "pcl-v2"]


def make(name: str, *, views: int = 2, batch: int = 8, processes: int = 1, **settings: Any) -> Any:
    kind = method_class(name)
    clusters: dict[str, Any] = {"clusters": (4,), "warmup_epochs": 0} if "pcl" in name else {}
    context = Context(
        num_images=IMAGES,
        num_classes=None,
        view_sizes=(16,) * views,
        batch_size=batch,
        total_steps=4,
        steps_per_epoch=4,
        epochs=1,
        world_size=processes,
    )
    chosen = {"queue_size": 16, "batch_norm_groups": 2, **clusters, **settings}
    return kind(kind.Settings(**chosen), TinyNet(), context)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_loss_is_that_of_equal_encoders_and_a_random_queue(name: str) -> None:
    """The sheets' value: in evaluation mode two equal views have one feature."""
    keys, width, temperature = 4096, 64, 0.2
    extra = {"warmup_epochs": 1} if "pcl" in name else {}
    sizes = {"queue_size": keys, "projector_output": width, "temperature": temperature}
    method, data = build(name, **sizes, **extra).eval(), Data(name)
    (view, _), batch = data.step(0)
    method.before_step(batch)
    loss = float(method((view, view), batch).detach())
    assert loss == pytest.approx(equal_encoders_start(keys, width, temperature), abs=0.2)


@pytest.mark.parametrize("name", METHODS)
def test_the_key_encoder_moves_before_the_keys_and_not_after(name: str) -> None:
    method, data = build(name, momentum=0.75), Data(name)
    optimizer = optimizer_of(method)
    train_step(method, optimizer, data, 0)
    learnt, kept = weights(method), weights(method.key_encoder)
    assert any(not torch.equal(learnt[key], kept[key]) for key in kept)
    method.before_step(data.step(1)[1])
    for key, value in weights(method.key_encoder).items():
        torch.testing.assert_close(value, 0.75 * kept[key] + 0.25 * learnt[key])
    assert all(not p.requires_grad for p in method.key_encoder.parameters())


def weights(module: Any) -> dict[str, Tensor]:
    """Weights of backbone and projector of a method or its key encoder."""
    pairs = (("backbone", module.backbone), ("projector", module.projector))
    return {
        f"{part}.{key}": value.detach().clone()
        for part, network in pairs
        for key, value in network.named_parameters()
    }


@pytest.mark.parametrize("name", [*METHODS, "moco-v2:symmetric"])
def test_a_batch_s_own_keys_enter_the_queue_after_the_step(name: str) -> None:
    method, data = build(name), Data(name)
    views, batch = data.step(0)
    before = method.queue.rows.clone()
    embeddings = detached(method.embed(views, batch))
    method.loss(embeddings, batch)
    assert torch.equal(method.queue.rows, before)
    method.after_step(embeddings, batch)
    k = embeddings["k"]
    written = k if k.ndim == 2 else torch.cat(k.unbind(1))
    assert torch.equal(method.queue.rows[: len(written)], written)
    assert torch.equal(method.queue.rows[len(written) :], before[len(written) :])
    assert int(method.queue.pointer) == len(written)


def test_the_symmetric_loss_is_the_sum_of_both_directions() -> None:
    both, data = build("moco-v2:symmetric"), Data("moco-v2")
    one = build("moco-v2")
    one.load_state_dict(both.state_dict())
    both.eval()
    one.eval()
    (first, second), batch = data.step(0)
    sum_of_two = one((first, second), batch) + one((second, first), batch)
    torch.testing.assert_close(both((first, second), batch), sum_of_two)


def test_a_queue_refuses_more_rows_than_it_has() -> None:
    with pytest.raises(ValueError, match="5 rows do not fit into a queue of 4"):
        enqueue(torch.zeros(4, 2), torch.tensor(0), torch.zeros(5, 2))


# Split batch norm.


@pytest.mark.parametrize(("groups", "images"), [(2, 8), (4, 8), (3, 8), (4, 3)])
def test_each_group_is_normalized_alone_and_running_statistics_are_their_mean(
    groups: int, images: int
) -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(images, 5, 2, 2, dtype=torch.float64) + 1
    plain = [nn.BatchNorm2d(5).double() for _ in range(min(groups, images))]
    expected = torch.empty_like(x)
    for group, norm in enumerate(plain):
        expected[group::groups] = norm(x[group::groups])
    split = split_batch_norm(nn.Sequential(nn.BatchNorm2d(5).double()), groups)
    torch.testing.assert_close(split(x), expected)
    torch.testing.assert_close(
        split(x.to(memory_format=torch.channels_last)).contiguous(), expected
    )
    split[0].reset_running_stats()
    split(x)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([norm.get_buffer(name) for norm in plain]).mean(0)
        torch.testing.assert_close(split[0].get_buffer(name), mean)
    assert int(split[0].num_batches_tracked) == 1
    split.eval()
    whole = nn.BatchNorm2d(5).double()
    whole.load_state_dict(split[0].state_dict())
    torch.testing.assert_close(split(x), whole.eval()(x))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("processes", "groups"), [(1, 4), (2, 2), (4, None)])
def test_the_groups_are_shared_out_over_processes(
    name: str, processes: int, groups: int | None
) -> None:
    method: Method = make(name, processes=processes, batch_norm_groups=4)
    found = {m.groups for m in method.modules() if isinstance(m, SplitBatchNorm)}
    assert found == ({groups} if groups else set())


# K-means and prototypes.


def clouds(count: int, each: int) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    centers = torch.randn(count, 8, generator=chance, dtype=torch.float64)
    noise = torch.randn(count, each, 8, generator=chance, dtype=torch.float64)
    rows = (centers[:, None] + 0.01 * noise).flatten(0, 1)
    return rows[torch.randperm(len(rows), generator=chance)]


def test_restarts_find_what_one_start_misses_and_depend_on_the_generator_alone() -> None:
    rows = clouds(8, 6)

    def cost(restarts: int, seed: int) -> tuple[float, Tensor]:
        chance = torch.Generator().manual_seed(seed)
        centroids = kmeans(rows, 8, KMeansSearch(20, restarts), chance)
        return float(nearest(rows, centroids)[1].sum()), centroids

    single = [cost(1, seed)[0] for seed in range(10)]
    several = [cost(10, seed)[0] for seed in range(10)]
    assert max(several) < max(single)
    assert sum(several) < sum(single)
    assert torch.equal(cost(3, 5)[1], cost(3, 5)[1])
    assert not torch.equal(cost(1, 5)[1], cost(1, 6)[1])


def test_an_empty_cluster_takes_half_of_a_large_one() -> None:
    rows = clouds(4, 6)
    far = torch.full((1, 8), 100.0, dtype=torch.float64)
    start = torch.cat([rows[:3], far])
    kept, _ = lloyd(rows, start, 5)
    assert torch.equal(kept[3:], far)
    split, _ = lloyd(rows, start, 5, torch.Generator().manual_seed(0))
    sizes = torch.bincount(nearest(rows, split)[0], minlength=4)
    assert (sizes > 0).all()


def test_kmeans_looks_at_no_more_points_than_it_may() -> None:
    rows = clouds(4, 25)
    chance = torch.Generator().manual_seed(0)
    centroids = kmeans(rows, 4, KMeansSearch(1, 1, points=1), chance)
    # Four rows for four clusters: each is its own centroid.
    assert torch.cdist(centroids, rows).amin(1).max() < 1e-9


def test_points_on_their_centroid_leave_usable_temperatures() -> None:
    assignments = torch.arange(20) // 2
    phi = concentration(torch.zeros(20), assignments, 10, alpha=10, temperature=0.2)
    torch.testing.assert_close(phi, torch.full((10,), 0.2))
    distances = torch.zeros(20)
    distances[:2] = 1.0
    phi = concentration(distances, assignments, 10, alpha=10, temperature=0.2)
    assert (phi > 0).all()
    singles = concentration(torch.zeros(3), torch.arange(3), 3, alpha=10, temperature=0.2)
    torch.testing.assert_close(singles, torch.full((3,), 0.2))


def test_negatives_are_other_clusters_each_once_and_all_if_they_are_few() -> None:
    clustering = Clustering(num_images=30, clusters=10, width=4, temperature=0.2)
    clustering.sizes.fill_(3)
    clustering.sizes[7] = 0
    positives, chance = torch.tensor([2, 5, 2]), torch.Generator().manual_seed(0)
    drawn = [clustering.negatives(positives, 4, chance).tolist() for _ in range(50)]
    assert all(len(set(ids)) == 4 for ids in drawn)
    assert {i for ids in drawn for i in ids} == {0, 1, 3, 4, 6, 8, 9}
    everything = clustering.negatives(positives, 100, chance).tolist()
    assert sorted(everything) == [NONE] * 3 + [0, 1, 3, 4, 6, 8, 9]


@pytest.mark.parametrize("name", ["pcl-v1", "pcl-v2"])
def test_clusters_are_formed_after_the_warm_up_by_the_key_encoder_at_rest(name: str) -> None:
    method, data = build(name, warmup_epochs=1), Data(name)
    optimizer = optimizer_of(method)
    for step in range(STEPS_PER_EPOCH):
        train_step(method, optimizer, data, step)
        assert "prototype_loss" not in method.logged
    assert all(int(c.sizes.sum()) == 0 for c in method.prototypes.each())
    train_step(method, optimizer, data, STEPS_PER_EPOCH)
    assert float(method.logged["prototype_loss"]) > 0
    assert 0 < float(method.logged["usage_entropy"]) <= 1

    # Before the fifth step's update of the key encoder, in evaluation mode, without shuffling.
    again, data = build(name, warmup_epochs=1), Data(name)
    optimizer = optimizer_of(again)
    for step in range(STEPS_PER_EPOCH):
        train_step(again, optimizer, data, step)
    again.eval()
    keys = again.key_encoder(data.images)
    for clustering in method.prototypes.each():
        assert int(clustering.sizes.sum()) == IMAGES
        assert torch.equal(torch.bincount(clustering.assignments), clustering.sizes)
        norms = clustering.prototypes.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
        for cluster in range(len(clustering.sizes)):
            members = keys[clustering.assignments == cluster]
            if len(members) > 2:
                cosines = members @ clustering.prototypes.T
                assert cosines.mean(0).argmax() == cluster
        torch.testing.assert_close(clustering.concentrations.mean(), torch.tensor(0.2))


def test_a_later_epoch_clusters_anew() -> None:
    method, data = build("pcl-v1"), Data("pcl-v1")
    optimizer = optimizer_of(method)
    found = []
    for step in range(STEPS_PER_EPOCH + 1):
        train_step(method, optimizer, data, step)
        found.append(method.prototypes.each()[1].prototypes.clone())
    assert torch.equal(found[0], found[STEPS_PER_EPOCH - 1])
    assert not torch.equal(found[0], found[STEPS_PER_EPOCH])


@pytest.mark.parametrize("name", METHODS)
def test_recipes_that_cannot_work_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"views: {name} takes exactly 2 views"):
        make(name, views=3)
    with pytest.raises(UserError, match=rf"settings\.queue_size: {name} replaces 8 keys .* not 20"):
        make(name, queue_size=20)
    with pytest.raises(UserError, match=rf"batch_size: {name} .* multiple of 3 .* not 8"):
        make(name, batch_norm_groups=3)
    with pytest.raises(UserError, match=rf"batch_size: {name} .* at least 16 images, not 8"):
        make(name, batch_norm_groups=8)
    with pytest.raises(
        UserError, match=r"settings\.batch_norm_groups: 3 groups do not divide by 2 processes"
    ):
        make(name, batch_norm_groups=3, processes=2)
    if name == "moco-v2":
        with pytest.raises(UserError, match=r"settings\.queue_size: moco-v2 replaces 16 keys"):
            make(name, queue_size=3 * BATCH, symmetric=True)
    if "pcl" in name:
        with pytest.raises(UserError, match=rf"settings\.clusters: {name} cannot make 33 clusters"):
            make(name, clusters=(4, IMAGES + 1))
        with pytest.raises(UserError, match=rf"settings\.warmup_epochs: {name} clusters after 1 "):
            make(name, warmup_epochs=1)
