"""Columns of quoted numbers, and the board that sets BYOL's target decay beside the paper's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.leaderboard.conftest import (
    make_board,
    make_column,
    make_entrant,
    make_job_description,
    make_record,
    make_task,
)
from transferbench.api.boards import evaluate_board, leaderboard
from transferbench.errors import UserError
from transferbench.leaderboard.board import read_board
from transferbench.leaderboard.jobs import Column, plan
from transferbench.leaderboard.record import record_path, write
from transferbench.leaderboard.render import text
from transferbench.leaderboard.table import Table, build_tables
from transferbench.pretrain.recipe import differences, load_recipe, recipe_names, resolve

ROOT = Path(__file__).parents[2]
PRINTED = {"tau-1": 18.8, "tau-0.999": 69.8, "tau-0.99": 72.5, "tau-0.9": 68.4, "tau-0": 0.3}
SOURCE = "arXiv 1234.56789 (table 1)"


def tables_of(quoted: dict[str, float]) -> list[Table]:
    """Two models measured on x with two seeds; some of them quoted for y under linear."""
    board = make_board(seeds=[3, 4], published=["y"])
    entrants = [make_entrant(name) for name in ("a", "b")]
    columns = [make_column("x"), Column("y", published=True)]
    tasks = [make_task("linear"), make_task("knn")]
    for job in plan(board, entrants, columns[:1], tasks, [3, 4]):
        assert job.description is not None
        write(job.path, make_record(0.25, job.description))
    for name, value in quoted.items():
        details = {"source": SOURCE}
        record = make_record(value, make_job_description(name, "y"), key="", details=details)
        path = record_path(board.folder, name, "y", "linear", 3)
        write(path, record.model_copy(update={"kind": "published", "standard_error": 0.007}))
    return build_tables(
        board, entrants, columns, tasks, plan(board, entrants, columns, tasks, [3, 4])
    )


def test_a_quoted_column_stands_beside_the_measured_and_out_of_the_average(here: Path) -> None:
    linear, knn = tables_of({"a": 0.5, "b": 0.75})
    assert linear.columns == ("x", "y", "average")
    assert linear.heading("y") == "y‡ (top1)"
    cell = linear.cells["b", "y"]
    assert (cell.value, cell.mark, cell.note) == (75.0, "best", "")
    assert cell.error == pytest.approx(0.7)
    assert linear.cells["b", "average"].value == 25.0
    said = [line for line in linear.footnote if line.startswith("‡")]
    assert said == [
        f"‡ y: as published in {SOURCE}, with the errors given there; left out of the average."
    ]
    assert not any("jobs" in line for line in linear.footnote)
    # Nothing was published for the other protocol.
    assert knn.columns == ("x", "average")
    assert not any("‡" in line for line in knn.footnote)


def test_a_number_that_was_not_published_is_a_dash_and_no_job(here: Path) -> None:
    linear = tables_of({"a": 0.5})[0]
    assert linear.cells["b", "y"].note == "missing"
    assert linear.cells["b", "average"].value == 25.0
    assert not any("jobs" in line for line in linear.footnote)


@pytest.mark.parametrize("style", ["markdown", "csv", "latex", "json"])
def test_every_format_takes_tables_of_different_columns(here: Path, style: str) -> None:
    rendered = text(tables_of({"a": 0.5}), style, board="test")
    assert "50.0" in rendered
    if style == "json":
        assert '"in_average": false' in rendered


def test_a_quoted_column_may_not_share_its_name(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text('datasets = ["digits"]\npublished = ["digits"]\n')
    with pytest.raises(UserError, match="the data set 'digits' stands twice"):
        read_board(file)


def test_byols_target_decay_renders_beside_the_printed_numbers(here: Path) -> None:
    shutil.copytree(ROOT / "leaderboards" / "byol-tau", here / "leaderboards" / "byol-tau")
    linear = leaderboard("byol-tau").tables[0]
    assert {m: linear.cells[m, "imagenet"].value for m in linear.models} == pytest.approx(PRINTED)
    assert linear.cells["tau-1", "imagenet"].error == pytest.approx(0.7)
    assert list(linear.models) == list(PRINTED)
    assert "2006.07733" in " ".join(linear.footnote)
    jobs = evaluate_board("byol-tau", dry_run=True).jobs
    assert {job.column.name for job in jobs} == {"drawn-shapes", "drawn-textures", "digits"}


def test_the_recipes_of_the_decay_differ_in_nothing_else() -> None:
    names = [name for name in recipe_names() if name.startswith("tiny/ablations/byol-tau-")]
    recipes = [resolve(load_recipe(name)) for name in names]
    assert len(recipes) == 5
    for recipe in recipes:
        changed = {key.split(" ")[0] for key in differences(recipe, recipes[0])}
        assert changed <= {"settings.tau_base", "settings.constant_tau"}
        tau = recipe.settings["tau_base"]
        assert recipe.settings["constant_tau"] == (tau in (0.0, 1.0))
        assert recipe.where.endswith(f"tau-{tau:g}.toml")
