from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.makers import write_parquet
from transferbench.data.drawn import SHAPES
from transferbench.data.folder import FolderSource
from transferbench.data.splits import random_fifth, validation_split
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
