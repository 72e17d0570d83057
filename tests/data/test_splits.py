from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.makers import write_parquet
from transferbench.data.drawn import SHAPES
from transferbench.data.folder import FolderSource
from transferbench.data.splits import (
    balanced_order,
    random_fifth,
    training_split,
    validation_split,
)
from transferbench.errors import UserError


@pytest.mark.parametrize(("n", "fifth"), [(8144, 1628), (3680, 736), (3060, 612), (7, 1)])
def test_sizes_of_the_transfer_paper(n: int, fifth: int) -> None:
    train, validation = random_fifth(n)
    assert len(validation) == fifth
    assert sorted([*train, *validation]) == list(range(n))


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(3)
    expected = np.random.RandomState(3).rand()
    random_fifth(50)
    assert np.random.rand() == expected


def test_a_set_without_validation_images_gets_a_fifth() -> None:
    train, validation = validation_split(SHAPES.load())
    assert (len(train), len(validation)) == (1639, 409)
    assert (validation == random_fifth(2048)[1]).all()


def test_given_validation_images_are_used(tmp_path: Path) -> None:
    write_parquet(tmp_path / "given" / "train.parquet", [0, 1, 0, 1], seed=1)
    write_parquet(tmp_path / "given" / "val.parquet", [1, 0], seed=2)
    train, validation = validation_split(FolderSource(tmp_path / "given").load())
    assert train.tolist() == [0, 1, 2, 3]
    assert validation.tolist() == [4, 5]


def test_a_card_may_ask_for_a_fifth_of_both(tmp_path: Path) -> None:
    write_parquet(tmp_path / "both" / "train.parquet", [0, 1, 0, 1], seed=1)
    write_parquet(tmp_path / "both" / "val.parquet", [1, 0], seed=2)
    (tmp_path / "both" / "dataset.toml").write_text('validation = "random-fifth"\n')
    train, validation = validation_split(FolderSource(tmp_path / "both").load())
    assert (len(train), len(validation)) == (5, 1)


def test_too_few_images_for_a_fifth(tmp_path: Path) -> None:
    write_parquet(tmp_path / "few" / "train.parquet", [0, 1, 0, 1])
    with pytest.raises(UserError, match="'few' has 4 training images"):
        validation_split(FolderSource(tmp_path / "few").load())


@pytest.mark.parametrize("several", [False, True])
def test_labelled_images_are_balanced_nested_and_repeatable(several: bool) -> None:
    draw = np.random.RandomState(3)
    one = draw.choice(5, 400, p=[0.6, 0.2, 0.1, 0.08, 0.02])
    labels = (draw.rand(400, 5) < [0.6, 0.3, 0.1, 0.08, 0.02]).astype(np.uint8) if several else one
    whole, _ = balanced_order(labels, 400, classes=5, seed=0)
    assert sorted(whole) == list(range(400))
    for count in (5, 23, 40):
        few, ranks = balanced_order(labels, count, classes=5, seed=0)
        assert (few == whole[:count]).all()
        members = labels[few] if several else np.eye(5, dtype=int)[labels[few]]
        had = members.sum(axis=0)
        if not several:
            assert had.max() - had.min() <= 1 or had.min() == np.bincount(labels).min()
            assert (
                ranks == [(labels[few[:i]] == labels[few[i]]).sum() for i in range(count)]
            ).all()
        assert had.min() > 0
    assert (balanced_order(labels, 40, classes=5, seed=1)[0] != whole[:40]).any()


def test_both_ways_of_drawing_agree_on_one_label_each() -> None:
    labels = np.random.RandomState(0).randint(0, 6, 90)
    single = balanced_order(labels, 60, classes=6, seed=4)
    columns = balanced_order(np.eye(6, dtype=np.uint8)[labels], 60, classes=6, seed=4)
    assert (single[0] == columns[0]).all()
    assert (single[1] == columns[1]).all()


def test_a_fifth_of_the_labelled_images_validates() -> None:
    data = SHAPES.load()
    labels = np.concatenate([data.splits[n].labels for n in ("train", "val") if n in data.splits])
    train, validation = training_split(data, 80, seed=0)
    assert (len(train), len(validation)) == (64, 16)
    assert (np.bincount(labels[train]) == 8).all()
    assert (np.bincount(labels[validation]) == 2).all()
    share = training_split(data, 80 / len(labels), seed=0)
    assert (share[0] == train).all()
    more = training_split(data, 200, seed=0)
    assert set(train) < set(more[0])
    assert set(validation) < set(more[1])
    assert [len(x) for x in training_split(data, None, seed=0)] == [
        len(x) for x in validation_split(data)
    ]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (5, r"labels = 5 is 5 of the \d+ .* leaves 3 classes without .*; at least 9 are needed"),
        (8, "leaves none for validation; at least 9 are needed"),
        (0.0001, r"labels = 0.0001 is 0 of the \d+ training images"),
        (10**6, r"labels = 1000000, but 'drawn-shapes' has \d+ training images"),
    ],
)
def test_too_few_labels_or_too_many_are_refused(labels: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        training_split(SHAPES.load(), labels, seed=0)
