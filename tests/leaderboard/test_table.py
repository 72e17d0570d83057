from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.conftest import (
    FakeReference,
    make_board,
    make_column,
    make_entrant,
    make_job_description,
    make_record,
    make_task,
)
from transferbench.errors import UserError
from transferbench.leaderboard.jobs import Column, Entrant, plan
from transferbench.leaderboard.record import write
from transferbench.leaderboard.render import markdown, text
from transferbench.leaderboard.table import Cell, Table, build_tables, place_marks, results_frame

Values = Mapping[tuple[str, str, int], float | None]


def _tables(
    values: Values,
    *,
    models: tuple[str, ...] = ("a", "b", "c"),
    columns: tuple[Column, ...] | None = None,
    seeds: tuple[int, ...] = (0,),
    stale: tuple[tuple[str, str], ...] = (),
    entrants: list[Entrant] | None = None,
    name: str = "test",
    **board: Any,
) -> list[Table]:
    """Records by (model, data set, seed), None for a failure, through files to tables."""
    columns = columns or (make_column("x"), make_column("y"))
    entrants = entrants or [make_entrant(name) for name in models]
    found = make_board(name, seeds=list(seeds), **board)
    task = make_task("linear")
    for job in plan(found, [make_entrant(n) for n in models], columns, [task], seeds):
        key = (job.entrant.name, job.column.name, job.seed)
        if key in values:
            description = job.description or make_job_description()
            if key[:2] in stale:
                dataset = description.dataset.model_copy(update={"fingerprint": "another"})
                description = description.model_copy(update={"dataset": dataset})
            write(job.path, make_record(values[key], description))
    jobs = plan(found, entrants, columns, [task], seeds)
    return build_tables(found, entrants, columns, [task], jobs)


FULL = {
    ("a", "x", 0): 0.5, ("a", "y", 0): 0.25,
    ("b", "x", 0): 0.75, ("b", "y", 0): 0.125,
    ("c", "x", 0): 0.6, ("c", "y", 0): 0.0625,
}  # fmt: skip


def test_a_table_looks_like_the_papers(here: Path) -> None:
    lines = text(_tables(FULL), "markdown", board="test").splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    assert rows == [
        ["model", "x (top1)", "y (top1)", "average"],
        rows[1],
        ["a", "50.00", "**25.00**", "<u>37.50</u>"],
        ["b", "**75.00**", "<u>12.50</u>", "**43.75**"],
        ["c", "<u>60.00</u>", "6.25", "33.12"],
    ]
    assert all(re.fullmatch(":-+|-+:", rule) for rule in rows[1])
    assert len({len(line) for line in lines if line[:1] == "|"}) == 1


def test_marks_are_decided_on_unrounded_values_and_ties_share_them() -> None:
    def marks(*values: float | None) -> list[str]:
        cells = {str(i): Cell(v) for i, v in enumerate(values)}
        placed = place_marks(cells)
        return [placed.get(str(i), "-") for i in range(len(values))]

    assert marks(50.001, 50.002, 50.0) == ["second", "best", ""]
    assert marks(70.0, 70.0, 60.0, 60.0, 50.0) == ["best", "best", "second", "second", ""]
    assert marks(70.0, None, 60.0) == ["best", "-", "second"]
    assert marks(70.0) == ["best"]
    assert marks(None) == ["-"]


def test_an_incomplete_row_has_no_average_and_the_footnote_says_why(here: Path) -> None:
    (table,) = _tables({k: v for k, v in FULL.items() if k != ("b", "y", 0)})
    assert table.cells["b", "average"].value is None
    assert table.cells["b", "y"].note == "missing"
    assert table.cells["a", "average"].mark == "best"
    assert any(
        line.startswith("Of 6 jobs: 1 missing; `transferbench evaluate --all --board test`")
        for line in table.footnote
    )
    (complete,) = _tables(FULL)
    assert not any(line.startswith("Of ") for line in complete.footnote)


def test_failed_stale_and_unreadable_jobs_count_for_nothing(here: Path) -> None:
    values: dict[tuple[str, str, int], float | None] = {**FULL, ("c", "x", 0): None}
    tables = _tables(values, stale=(("b", "x"),))
    bad = Path("leaderboards/test/records/a/x/linear-0.json")
    bad.write_text("{")
    (table,) = tables
    assert table.cells["b", "x"] == Cell(75.0, 1.0, "", "stale", 100)
    assert table.cells["c", "x"].note == "failed"
    assert table.cells["a", "x"].mark == "best"
    rendered = text(tables, "markdown", board="test")
    assert "75.00†" in rendered
    assert "| failed |" in re.sub(" +", " ", rendered)
    assert (
        "1 stale, 1 failed; `transferbench evaluate --all --board test --retry-failed`" in rendered
    )
    (table,) = _tables({})
    assert table.cells["a", "x"].note == "unreadable"


def test_records_count_without_the_models_and_data_they_came_from(here: Path) -> None:
    """A README rendered from a fresh clone equals one rendered where all runs are."""
    (with_all,) = _tables(FULL)
    gone = [make_entrant(n, FakeReference(n, digest="")) for n in "abc"]
    absent = (Column("x", reason="unknown"), Column("y", reason="unknown"))
    (without,) = _tables({}, entrants=gone, columns=absent)
    assert markdown.render([without]) == markdown.render([with_all])


def test_an_absent_set_lacks_a_number_where_its_metric_has_others(here: Path) -> None:
    found, entrants = make_board("test", seeds=[0]), [make_entrant("a")]
    tasks = [make_task("linear"), make_task("knn")]
    columns = (make_column("x"), make_column("y"))
    for job in plan(found, entrants, columns, tasks, (0,)):
        if (job.task.name, job.column.name) != ("knn", "y"):
            assert job.description is not None
            write(job.path, make_record(0.5, job.description))
    absent = (Column("x", reason="unknown"), Column("y", reason="unknown"))
    jobs = plan(found, entrants, absent, tasks, (0,))
    _, knn = build_tables(found, entrants, absent, tasks, jobs)
    assert knn.cells["a", "x"].value == 50.0
    assert knn.cells["a", "y"].note == "missing"


def test_the_pretraining_set_is_shown_but_left_out_of_the_average(here: Path) -> None:
    (table,) = _tables(FULL, pretraining_data="y")
    assert table.cells["a", "average"].value == 50.0
    assert table.heading("y") == "y* (top1)"
    rendered = markdown.render([table])
    assert "y\\* (top1)" in rendered
    assert "left out of the average" in rendered


def test_what_does_not_apply_does_not_make_a_row_incomplete(here: Path) -> None:
    columns = (make_column("x"), make_column("y"), make_column("many", task="multilabel"))
    (table,) = _tables(FULL, columns=columns)
    assert {table.cells[m, "many"].note for m in "abc"} == {"n/a"}
    assert table.cells["b", "average"].value == 43.75
    assert "n/a" in markdown.render([table])


def test_over_seeds_a_cell_is_the_mean_and_its_error_that_of_the_mean(here: Path) -> None:
    values = {("a", "x", s): v for s, v in enumerate([0.5, 0.6, 0.7])}
    (table,) = _tables(values, models=("a",), columns=(make_column("x"),), seeds=(0, 1, 2))
    cell = table.cells["a", "x"]
    assert cell.value == pytest.approx(60.0, abs=1e-12)
    assert cell.error == pytest.approx(10 / math.sqrt(3), abs=1e-12)
    assert any("over seeds 0, 1, 2" in line for line in table.footnote)
    (single,) = _tables(FULL)
    assert single.cells["a", "x"].error == 1.0
    assert any("Seed 0; standard errors are bootstrap" in line for line in single.footnote)


def test_over_seeds_the_averages_error_is_that_of_the_seeds_averages(here: Path) -> None:
    """Columns of one seed share its model: here they cancel, or they add up."""
    seeds = (0, 1)
    apart = {("a", "x", 0): 0.5, ("a", "y", 0): 0.7, ("a", "x", 1): 0.7, ("a", "y", 1): 0.5}
    together = {("b", "x", 0): 0.5, ("b", "y", 0): 0.5, ("b", "x", 1): 0.7, ("b", "y", 1): 0.7}
    (table,) = _tables({**apart, **together}, models=("a", "b"), seeds=seeds)
    assert table.cells["a", "x"].error == pytest.approx(10.0)
    assert table.cells["a", "average"].error == pytest.approx(0.0, abs=1e-9)
    assert table.cells["b", "average"].error == pytest.approx(10.0)
    assert table.cells["b", "average"].value == pytest.approx(60.0)


def test_on_the_local_board_a_cell_is_complete_with_the_seeds_measured(here: Path) -> None:
    values: dict[tuple[str, str, int], float | None] = {
        ("a", "x", 0): 0.5, ("a", "y", 0): 0.7,
        ("b", "x", 0): 0.5, ("b", "x", 1): 0.7, ("b", "y", 1): 0.64,
    }  # fmt: skip
    (table,) = _tables(values, seeds=(0, 1), name="local")
    assert table.cells["a", "average"] == Cell(60.0, math.sqrt(2) / 2, "second")
    assert table.cells["b", "x"].value == pytest.approx(60.0)
    assert table.cells["b", "average"].value == pytest.approx(62.0)
    assert table.cells["b", "average"].error is None
    assert table.cells["c", "x"].note == "missing"
    notes = "\n".join(table.footnote)
    assert "Of 9 jobs: 4 missing." in notes
    assert "evaluate --all" not in notes
    (other,) = _tables(values, seeds=(0, 1))
    assert other.cells["a", "x"].note == "missing"


def test_a_cell_that_lacks_a_seed_is_shown_and_does_not_count(here: Path) -> None:
    values = {("a", "x", 0): 0.9, ("b", "x", 0): 0.5, ("b", "x", 1): 0.7}
    (table,) = _tables(values, models=("a", "b"), columns=(make_column("x"),), seeds=(0, 1))
    assert table.cells["a", "x"] == Cell(90.0, 1.0, "", "missing", 100)
    assert table.cells["b", "x"].mark == "best"
    assert table.cells["a", "average"].value is None
    assert "90.00†" in markdown.render([table])


def test_standard_errors_on_request(here: Path) -> None:
    tables = _tables(FULL)
    assert "±" not in markdown.render(tables)
    rendered = markdown.render(tables, errors=True)
    assert "**75.00** ± 1.00" in rendered
    # The average of two columns with error 1: sqrt(1 + 1) / 2.
    assert "**43.75** ± 0.71" in rendered


def test_the_same_frame_in_every_format(here: Path) -> None:
    tables = _tables({k: v for k, v in FULL.items() if k != ("c", "y", 0)})
    rows = list(csv.DictReader(io.StringIO(text(tables, "csv", board="test"))))
    assert rows[0] == {
        "protocol": "linear", "model": "a", "x": "50.00", "y": "25.00", "average": "37.50",
    }  # fmt: skip
    assert rows[2]["y"] == rows[2]["average"] == ""
    document = json.loads(text(tables, "json", board="test", errors=True))
    assert (document["board"], document["unit"]) == ("test", "percent")
    table = document["tables"][0]
    assert table["columns"][0] == {"dataset": "x", "metric": "top1", "in_average": True}
    assert table["rows"][2]["values"] == {"x": 60.0, "y": None, "average": None}
    assert table["rows"][2]["notes"] == {"y": "missing", "average": "missing"}
    assert table["rows"][1]["marks"] == {"x": "best", "y": "second", "average": "best"}
    assert table["rows"][1]["standard_errors"]["x"] == 1.0
    latex = text(tables, "latex", board="test")
    assert r"b & \textbf{75.00} & \underline{12.50} & \textbf{43.75} \\" in latex
    assert r"c & \underline{60.00} & -- & -- \\" in latex
    errors = text(tables, "csv", board="test", errors=True).splitlines()[0]
    assert errors.startswith("protocol,model,x,x_standard_error,y,")


def test_latex_escapes_names(here: Path) -> None:
    (table,) = _tables(
        {("a_b", "x", 0): 0.5}, models=("a_b",), columns=(make_column("x"), make_column("c_d"))
    )
    latex = text([table], "latex", board="test")
    assert r"a\_b & \textbf{50.00}" in latex
    assert r"c\_d (top1)" in latex


def test_footnotes_tell_versions_metrics_and_sizes(here: Path) -> None:
    (table,) = _tables(FULL)
    notes = "\n".join(table.footnote)
    assert "top1: top-1 accuracy" in notes
    assert "Made with transferbench 0.1.0, torch 2.14.0." in notes
    assert "Test images: x 100, y 100." in notes


def test_the_text_around_the_markers_stays() -> None:
    where = Path("README.md")
    new = markdown.update(None, "Demo", "transferbench leaderboard", "one\n", where)
    assert new.startswith("# Demo\n")
    assert markdown.BEGIN in new
    edited = f"# Mine\n\nbefore\n{markdown.BEGIN}\nold\n{markdown.END}\nafter, no newline"
    updated = markdown.update(edited, "Demo", "c", "two\n", where)
    assert updated == edited.replace("old", "two")
    assert markdown.update(updated, "Demo", "c", "two\n", where) == updated
    appended = markdown.update("# Mine\n", "Demo", "c", "two\n", where)
    assert appended == f"# Mine\n\n{markdown.BEGIN}\ntwo\n{markdown.END}\n"


@pytest.mark.parametrize(
    "text_",
    [
        markdown.BEGIN,
        f"{markdown.END} {markdown.BEGIN}",
        f"{markdown.BEGIN} {markdown.BEGIN} {markdown.END}",
    ],
)
def test_broken_markers_are_an_error(text_: str) -> None:
    with pytest.raises(UserError, match="once each, in this order"):
        markdown.update(text_, "t", "c", "x\n", Path("README.md"))


def test_results_are_a_frame_with_one_row_per_record(here: Path) -> None:
    frame = results_frame({Path("p.json"): make_record(0.5), Path("q.json"): make_record(None)})
    assert frame[["model", "dataset", "protocol", "seed", "kind"]].to_numpy().tolist() == [
        ["swav", "digits", "linear", 0, "measured"],
        ["swav", "digits", "linear", 0, "failed"],
    ]
    assert frame["value"].tolist()[0] == 0.5
    assert math.isnan(frame["value"].tolist()[1])
    assert str(frame["n"].dtype) == "Int64"
    assert results_frame({}).empty


def test_what_is_no_share_is_shown_as_it_is_with_its_own_kind_of_error(here: Path) -> None:
    board, column, task = make_board("test", seeds=[0]), make_column("x"), make_task("geometry")
    (job,) = plan(board, [make_entrant("a")], [column], [task], [0])
    details = {"errors_over": "tenths of the images"}
    record = make_record(0.5, job.description, metric="rankme", details=details)
    write(job.path, record.model_copy(update={"value": 37.25, "standard_error": 1.5}))
    (job,) = plan(board, [make_entrant("a")], [column], [task], [0])
    (table,) = build_tables(board, [make_entrant("a")], [column], [task], [job])
    assert table.cells["a", "x"].value == 37.25
    assert table.cells["a", "x"].error == 1.5
    assert "rankme: effective rank of the features (RankMe)." in table.footnote
    assert "Seed 0; standard errors are over tenths of the images." in table.footnote
