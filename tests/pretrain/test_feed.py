"""Batches and views: every image once an epoch, drawn anew, the same at the same step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.pretrain.conftest import NoiseSource, make_recipe
from transferbench.augment.views import plain_view
from transferbench.errors import UserError
from transferbench.pretrain.feed import Feed, stored_size
from transferbench.progress import SILENT


def make_feed(count: int = 44, **changes: Any) -> Feed:
    return Feed(
        make_recipe(**changes),
        NoiseSource(count).load(),
        device=torch.device("cpu"),
        labelled=True,
        progress=SILENT,
    )


def test_an_epoch_shows_an_image_at_most_once_and_leaves_out_the_last_incomplete_batch() -> None:
    feed = make_feed()
    order = torch.cat(feed.order(0))
    assert feed.steps_per_epoch == 5
    assert len(order) == 40
    assert len(set(order.tolist())) == 40


def test_every_epoch_and_seed_has_its_own_order() -> None:
    feed = make_feed()
    first, again, later = (torch.cat(feed.order(epoch)) for epoch in (0, 0, 1))
    other = torch.cat(make_feed(seed=1).order(0))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


def test_views_depend_on_the_purpose_alone() -> None:
    feed, indices = make_feed(), torch.arange(4)
    one, other = feed.views(indices, 0, "step", 3), feed.views(indices, 0, "step", 4)
    assert [view.shape[-1] for view in one] == [16, 16, 8] == list(feed.view_sizes)
    assert all(map(torch.equal, one, make_feed().views(indices, 2, "step", 3)))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], one[1])
    assert one[0].is_contiguous(memory_format=torch.channels_last)


def test_plain_images_and_labels_are_those_of_the_indices() -> None:
    feed, indices = make_feed(), torch.tensor([5, 2])
    images = torch.from_numpy(NoiseSource(44).load().splits["train"].images)
    expected = plain_view(images[indices], 16, feed.recipe.normalization)
    assert torch.equal(feed.plain(indices), expected)
    labels = feed.labels(indices)
    assert labels is not None
    assert labels.tolist() == [1, 2]


def test_a_walk_covers_every_image_once_in_order_or_in_a_random_one() -> None:
    feed = make_feed()
    assert torch.cat(list(feed.walk())).tolist() == list(range(44))
    one, same, other = (torch.cat(list(feed.walk("walk", n))).tolist() for n in (1, 1, 2))
    assert one == same != other
    assert sorted(one) == sorted(other) == list(range(44))
    assert one != sorted(one)


def test_phases_tell_their_epochs() -> None:
    feed = make_feed(epochs=6, phases=[{"from_epoch": 2}, {"from_epoch": 5}])
    assert [feed.phase(epoch) for epoch in (0, 1, 2, 4, 5)] == [
        (0, 0, 2), (0, 0, 2), (1, 2, 5), (1, 2, 5), (2, 5, 6),
    ]  # fmt: skip


def test_a_cut_larger_than_the_images_is_refused_at_once() -> None:
    views = [{"size": 32, "pad_crop": {"padding": 2}}, {"size": 16}]
    with pytest.raises(UserError, match="cannot be cut from images of 16 x 16"):
        make_feed(views=views)


def test_images_of_mixed_sizes_are_held_larger_than_a_view() -> None:
    assert stored_size([32, 16]) == 64
    assert stored_size([224, 96]) == 256
