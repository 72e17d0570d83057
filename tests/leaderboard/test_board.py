from __future__ import annotations

from pathlib import Path

import pytest

from tests.leaderboard.conftest import make_job_description, make_record
from transferbench.errors import UserError
from transferbench.leaderboard.board import board_names, find_board, short_name
from transferbench.leaderboard.local import (
    existing_board,
    extended,
    held_by_other,
    local_board,
    row_name,
    save_extended,
)
from transferbench.leaderboard.record import record_path, write

GOOD = """
title = "Mine"
seeds = [0, 1]
datasets = ["digits", "folder:../images/My Flowers"]
pretraining_data = "drawn"
[[models]]
name = "swav"
recipe = "tiny/swav"
set = ["epochs=8"]
[[models]]
name = "net"
reference = "timm:resnet18"
[[models]]
name = "small-net"
backbone = { name = "resnet18", stem = "small" }
eval_size = 32
[[protocols]]
name = "linear-short"
protocol = "linear"
parameters = { count = 5 }
[[protocols]]
name = "knn"
"""


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_board_is_found_here_first_then_in_the_package(here: Path) -> None:
    packaged = find_board("demo")
    assert packaged.file is not None
    assert not packaged.file.is_relative_to(here)
    assert packaged.folder == Path("leaderboards/demo")
    _write(here / "leaderboards/demo/board.toml", GOOD)
    assert find_board("demo").title == "Mine"
    assert "demo" in board_names()


def test_the_demo_board_is_the_five_by_three_by_two_that_it_says() -> None:
    content = find_board("demo").content
    assert [m.name for m in content.models] == [
        "random", "supervised", "simclr-v1", "byol", "swav",
    ]  # fmt: skip
    assert content.datasets == ("drawn-shapes", "drawn-textures", "digits")
    assert [p.registered for p in content.protocols] == ["linear", "knn"]


def test_a_board_by_path_is_called_by_its_folder_or_stem(here: Path) -> None:
    _write(here / "boards/mine/board.toml", GOOD)
    for text in ("boards/mine", "boards/mine/board.toml"):
        assert find_board(text).name == "mine"
    _write(here / "boards/other.toml", GOOD)
    found = find_board("boards/other.toml")
    assert found.folder == Path("leaderboards/other")
    assert found.content.protocols[0].registered == "linear"


def test_two_boards_of_one_name_do_not_share_records(here: Path) -> None:
    _write(here / "leaderboards/mine/board.toml", GOOD)
    _write(here / "elsewhere/mine.toml", GOOD)
    assert find_board("leaderboards/mine/board.toml").name == "mine"
    with pytest.raises(UserError, match="same name"):
        find_board("elsewhere/mine.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "Mine"', 'titel = "Mine"', "unknown key 'titel'; did you mean 'title'?"),
        ('reference = "timm', 'refrence = "timm', "'models.1.refrence'; did you mean 'reference'?"),
        ("parameters = {", "params = {", "'protocols.0.params'; did you mean 'parameters'?"),
        ("stem = ", "stemm = ", "'models.2.backbone.stemm'; did you mean 'stem'?"),
        ("seeds = [0, 1]", "seeds = []", "seeds must not be empty"),
        ("seeds = [0, 1]", 'seeds = "x"', "seeds must be a valid tuple, not 'x'"),
        ("seeds = [0, 1]", "seeds = [-1]", "negative"),
        ('name = "swav"', 'name = "../swav"', "models.0.name must be letters"),
        ('name = "net"', 'name = "swav"', "the model 'swav' stands twice"),
        ('reference = "timm:resnet18"', "", "the model 'net' needs one of"),
        ('recipe = "tiny/swav"', 'reference = "run:x"', "'set' but no recipe"),
        ("eval_size = 32", "", "needs backbone and eval_size together"),
        ("seeds = [0, 1]", "seeds = [0, 1", "not valid TOML"),
        ('name = "knn"', "", "the key 'protocols.1.name' is missing"),
    ],
)
def test_a_wrong_board_is_one_sentence_with_file_and_key(
    here: Path, old: str, new: str, said: str
) -> None:
    assert old in GOOD
    _write(here / "leaderboards/bad/board.toml", GOOD.replace(old, new))
    with pytest.raises(UserError) as caught:
        find_board("bad")
    message = str(caught.value)
    assert said in message
    assert "leaderboards/bad/board.toml" in message
    assert "\n" not in message


def test_an_unknown_board_names_the_nearest(here: Path) -> None:
    with pytest.raises(UserError, match="unknown board 'demmo'; did you mean 'demo'"):
        find_board("demmo")
    with pytest.raises(UserError, match=r"no board file absent\.toml"):
        find_board("absent.toml")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("digits", "digits"),
        ("catalogue:cifar10", "cifar10"),
        ("folder:../images/My Flowers", "My-Flowers"),
        ("folder:/data/x/", "x"),
    ],
)
def test_columns_have_names_that_folders_can_have(text: str, name: str) -> None:
    assert short_name(text) == name


def test_the_local_board_grows_and_forgets_a_run_that_was_made_anew(here: Path) -> None:
    with pytest.raises(UserError, match="evaluate --all"):
        existing_board()
    first = [("swav-11111111", "run:runs/swav")]
    save_extended(models=first, datasets=["digits"], protocols=["knn"], seeds=[3])
    board = existing_board()
    assert board.content.seeds == (3,)
    save_extended(
        models=[("swav-22222222", "run:runs/swav"), ("net", "timm:resnet18")],
        datasets=["digits", "folder:x/flowers"],
        protocols=["linear"],
        seeds=[0],
    )
    content = existing_board().content
    assert [(m.name, m.reference) for m in content.models] == [
        ("swav-22222222", "run:runs/swav"),
        ("net", "timm:resnet18"),
    ]
    assert content.datasets == ("digits", "folder:x/flowers")
    assert [p.name for p in content.protocols] == ["knn", "linear"]
    assert content.seeds == (0, 3)


def test_a_column_belongs_to_the_data_whose_numbers_it_holds(here: Path) -> None:
    save_extended(models=[("a", "run:a")], datasets=["folder:a/x"], protocols=["knn"], seeds=[0])
    board = local_board()
    assert held_by_other(board, "folder:b/x", "new") == ""
    record = make_record(0.5, make_job_description(dataset="x"))
    write(record_path(board.folder, "a", "x", "knn", 0), record)
    told = held_by_other(board, "folder:b/x", "new")
    assert "the column 'x' of the board 'local' holds numbers of other data" in told
    assert "'folder:a/x'" in told
    assert held_by_other(board, "folder:a/x", "new") == ""
    assert held_by_other(board, "folder:moved/x", record.job.dataset.fingerprint) == ""
    assert held_by_other(board, "digits", "new") == ""


def test_extending_in_memory_writes_nothing(here: Path) -> None:
    board = extended(
        local_board(), models=[("a", "timm:x")], datasets=["digits"], protocols=["knn"], seeds=[0]
    )
    assert board.content.models[0].name == "a"
    assert list(here.iterdir()) == []


def test_row_names_fit_folders() -> None:
    assert row_name("my net (2)-0123abcd") == "my-net-2-0123abcd"
    assert row_name("...") == "model"
