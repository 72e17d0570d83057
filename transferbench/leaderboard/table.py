"""Records to frames, frames to tables in the style of arXiv 2011.13377, Table 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from transferbench.leaderboard.board import Board, short_name
from transferbench.leaderboard.jobs import Column, Entrant, Job, applies, count_states
from transferbench.leaderboard.local import NAME
from transferbench.leaderboard.record import Record, State
from transferbench.leaderboard.tasks import Task
from transferbench.leaderboard.units import SHARES, shown

AVERAGE = "average"
QUOTED = "‡"
Mark = Literal["", "best", "second"]
METRICS = {
    "top1": "top-1 accuracy",
    "mean_per_class": "mean per-class accuracy",
    "map11": "11-point mean average precision",
    "rankme": "effective rank of the features (RankMe)",
}
_COLUMNS = (
    "model", "dataset", "protocol", "seed", "kind", "metric", "value", "standard_error", "n",
    "key", "device", "seconds", "path",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes
    ----------
    value, error : float or None
        Mean over seeds and its standard error, not rounded; in percent where it is a share.
    mark : {"", "best", "second"}
        Place in its column.
    note : str
        "stale", "missing", "failed", "unreadable" or "n/a" where there is no number that counts.
    n : int or None
        Test images.
    by_seed : mapping
        The values in percent that the mean is over, by seed.
    """

    value: float | None = None
    error: float | None = None
    mark: Mark = ""
    note: str = ""
    n: int | None = None
    by_seed: Mapping[int, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def counts(self) -> bool:
        """Whether the number takes part in marks and average."""
        return self.value is not None and not self.note


@dataclass(frozen=True)
class Table:
    """The numbers of one protocol.

    Attributes
    ----------
    protocol : str
        The board's short name of the protocol.
    models, datasets : tuple of str
        Rows and columns in the board's order.
    metrics : mapping
        Metric of each data set; absent where no record and no card tells.
    outside_average : str or None
        The pretraining set's column, which the average leaves out.
    published : tuple of str
        Columns of quoted numbers, which the average leaves out too.
    cells : mapping
        By (model, data set), and by (model, "average").
    footnote : tuple of str
        Sentences without markup but for code in backquotes.
    """

    protocol: str
    models: tuple[str, ...]
    datasets: tuple[str, ...]
    metrics: Mapping[str, str]
    outside_average: str | None
    cells: Mapping[tuple[str, str], Cell]
    footnote: tuple[str, ...]
    published: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The data sets and the average."""
        return (*self.datasets, AVERAGE)

    def heading(self, column: str) -> str:
        """A column's head: name, metric, a star on the pretraining set, a mark on quoted ones."""
        mark = "*" if column == self.outside_average else ""
        mark += QUOTED if column in self.published else ""
        metric = f" ({self.metrics[column]})" if column in self.metrics else ""
        return f"{column}{mark}{metric}"

    def in_average(self, column: str) -> bool:
        """Whether the average is over this column too."""
        return column != self.outside_average and column not in self.published

    def frame(self, *, errors: bool = False) -> pd.DataFrame:
        """The table's numbers in percent, one row a model.

        Parameters
        ----------
        errors : bool
            Add a column "<data set>_standard_error" beside each.
        """
        rows = []
        for model in self.models:
            row: dict[str, object] = {"protocol": self.protocol, "model": model}
            for column in self.columns:
                cell = self.cells[model, column]
                row[column] = cell.value if cell.counts else math.nan
                if errors:
                    row[f"{column}_standard_error"] = cell.error if cell.counts else math.nan
            rows.append(row)
        return pd.DataFrame(rows)


def results_frame(records: Mapping[Path, Record]) -> pd.DataFrame:
    """One row per record.

    Returns
    -------
    DataFrame
        Columns model, dataset, protocol, seed, kind, metric, value and standard_error (in the
        metric's own unit, shares in 0..1), n, key, device, seconds, path.
    """
    rows = [
        (
            record.job.model.name, record.job.dataset.name, record.job.protocol.name,
            record.job.seed, record.kind, record.metric, record.value, record.standard_error,
            record.n, record.key, record.cost.device, record.cost.seconds.get("total"),
            path.as_posix(),
        )
        for path, record in records.items()
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    numbers = {"seed": "int64", "value": "float64", "standard_error": "float64", "n": "Int64"}
    return frame.astype({**numbers, "seconds": "float64"})


def build_tables(
    board: Board,
    entrants: Sequence[Entrant],
    columns: Sequence[Column],
    tasks: Sequence[Task],
    jobs: Sequence[Job],
) -> list[Table]:
    """Make one table per protocol from the jobs of a whole board.

    A stale number is shown but counts for nothing. A record whose model or data are not at hand
    counts: a table must come out alike on a machine that has only the records. On the local board,
    which asks for no seeds, a cell is complete with those that were measured.
    """
    if board.name == NAME:
        jobs = _as_measured(jobs)
    by_cell: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        by_cell.setdefault((job.task.name, job.entrant.name, job.column.name), []).append(job)
    pretraining = board.content.pretraining_data
    outside = short_name(pretraining) if pretraining else None
    quoted = {column.name for column in columns if column.published}
    # A quoted number that is not there was not published: no job could make it.
    jobs = [
        job for job in jobs if job.column.name not in quoted or job.state != "missing" or job.record
    ]
    tables = []
    for task in tasks:
        mine = [job for job in jobs if job.task.name == task.name]
        not_applicable = {c.name for c in columns if not _applicable(task, c, jobs)}
        names = tuple(c.name for c in columns if c.name not in quoted & not_applicable)
        not_applicable -= quoted
        cells: dict[tuple[str, str], Cell] = {}
        for entrant in entrants:
            for name in names:
                cells[entrant.name, name] = (
                    Cell(note="n/a")
                    if name in not_applicable
                    else _cell(by_cell.get((task.name, entrant.name, name), []))
                )
            averaged = [n for n in names if n not in {outside, *quoted, *not_applicable}]
            cells[entrant.name, AVERAGE] = _average([cells[entrant.name, n] for n in averaged])
        models = tuple(entrant.name for entrant in entrants)
        for name in (*names, AVERAGE):
            marks = place_marks({model: cells[model, name] for model in models})
            for model, mark in marks.items():
                cells[model, name] = _marked(cells[model, name], mark)
        tables.append(
            Table(
                protocol=task.name,
                models=models,
                datasets=names,
                metrics=_metrics(columns, mine),
                outside_average=outside if outside in names else None,
                cells=cells,
                footnote=_footnote(board, mine, names, cells, outside, not_applicable),
                published=tuple(name for name in names if name in quoted),
            )
        )
    return tables


def place_marks(cells: Mapping[str, Cell]) -> dict[str, Mark]:
    """Mark best and second best of a column, on unrounded values; equal values share a mark."""
    values = {name: cell.value for name, cell in cells.items() if cell.counts}
    ranked = sorted({value for value in values.values() if value is not None}, reverse=True)
    marks: dict[str, Mark] = {}
    for name, value in values.items():
        marks[name] = "best" if value == ranked[0] else "second" if value in ranked[1:2] else ""
    return marks


def _applicable(task: Task, column: Column, jobs: Iterable[Job]) -> bool:
    """Whether a protocol applies to a data set, told from records where the card is absent."""
    if column.published:
        return any(job.column.name == column.name and job.task.name == task.name for job in jobs)
    if column.card is not None:
        return applies(task, column)
    # Sets of one metric are of one kind: what has a number on one of them applies to all.
    recorded = [(job, job.reading.record) for job in jobs if job.reading.record is not None]
    metrics = {record.metric for job, record in recorded if job.column.name == column.name}
    return not metrics or any(
        job.task.name == task.name and record.metric in metrics for job, record in recorded
    )


def _cell(jobs: Sequence[Job]) -> Cell:
    """The mean over seeds; its error the bootstrap's for one seed, else that over seeds."""
    stale = [job.record for job in jobs if job.state == "stale" and job.record]
    counted = [job.record for job in jobs if job.state in ("fresh", "missing") and job.record]
    others: set[State] = {job.state for job in jobs if job.record is None}
    note = ""
    if len(counted) < len(jobs):
        note = next((s for s in ("unreadable", "failed", "missing") if s in others), "stale")
    records = [record for record in (counted or stale) if record.value is not None]
    if not records:
        return Cell(note=note or "missing")
    unit = shown(records[0].metric)
    values = [unit * record.value for record in records if record.value is not None]
    mean = math.fsum(values) / len(values)
    error: float | None
    if len(values) > 1:
        error = _error_of_mean(values)
    else:
        single = records[0].standard_error
        error = None if single is None else unit * single
    by_seed = dict(zip((record.job.seed for record in records), values, strict=True))
    return Cell(mean, error, note=note, n=records[0].n, by_seed=by_seed)


def _average(cells: Sequence[Cell]) -> Cell:
    """The average over columns for a complete row.

    With one seed the columns' bootstrap errors are independent. Over seeds the columns are not: a
    seed's model is behind all of them, so the error is that of the seeds' averages.
    """
    values = [cell.value for cell in cells if cell.counts and cell.value is not None]
    if not cells or len(values) < len(cells):
        return Cell(note="missing")
    errors = [cell.error for cell in cells if cell.error is not None]
    seeds = set(cells[0].by_seed)
    error = None
    if any(set(cell.by_seed) != seeds for cell in cells):
        pass  # columns of other seeds have no averages by seed
    elif len(seeds) > 1:
        error = _error_of_mean(
            [math.fsum(cell.by_seed[seed] for cell in cells) / len(cells) for seed in seeds]
        )
    elif len(errors) == len(values):
        error = math.sqrt(math.fsum(e * e for e in errors)) / len(errors)
    return Cell(math.fsum(values) / len(values), error)


def _error_of_mean(values: Sequence[float]) -> float:
    """The standard error of the mean of two values or more."""
    mean = math.fsum(values) / len(values)
    square = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(square / len(values))


def _marked(cell: Cell, mark: Mark) -> Cell:
    return replace(cell, mark=mark)


def _as_measured(jobs: Sequence[Job]) -> list[Job]:
    """Leave out the jobs of seeds that nobody measured where another seed was."""

    def cell(job: Job) -> tuple[str, str, str]:
        return job.task.name, job.entrant.name, job.column.name

    measured = {cell(job) for job in jobs if job.record is not None}
    return [
        job
        for job in jobs
        if job.state != "missing" or job.record is not None or cell(job) not in measured
    ]


def _metrics(columns: Sequence[Column], jobs: Iterable[Job]) -> dict[str, str]:
    found = {column.name: str(column.card.metric) for column in columns if column.card}
    for job in jobs:
        if job.record is not None and job.record.metric is not None:
            found[job.column.name] = job.record.metric
    return found


def _footnote(
    board: Board,
    jobs: Sequence[Job],
    datasets: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    outside: str | None,
    not_applicable: set[str],
) -> tuple[str, ...]:
    records = [job.record for job in jobs if job.record is not None]
    metrics = sorted({record.metric for record in records if record.metric})
    lines = []
    if metrics:
        named = ", ".join(f"{m}: {METRICS[m]}" if m in METRICS else m for m in metrics)
        lines.append(f"Percent; {named}." if set(metrics) <= set(SHARES) else f"{named}.")
    lines.append(
        "Best is bold, second best underlined, decided on unrounded values; equal values share "
        "the mark. The average is over all columns, for rows that have them all."
    )
    if outside in datasets:
        lines.append(f"* {outside}: the pretraining set, left out of the average.")
    for name in datasets:
        quoted = [job.record for job in jobs if job.column.published and job.column.name == name]
        if sources := sorted({str(r.details.get("source", "print")) for r in quoted if r}):
            lines.append(
                f"{QUOTED} {name}: as published in {' and '.join(sources)}, with the errors given "
                "there; left out of the average."
            )
    if not_applicable:
        lines.append("n/a: the protocol does not apply to the data set.")
    seeds = board.content.seeds
    over = sorted({str(r.details["errors_over"]) for r in records if r.details.get("errors_over")})
    errors = " and ".join(f"over {what}" for what in over)
    errors = errors or "bootstrap errors over the test images"
    if len(seeds) == 1:
        lines.append(f"Seed {seeds[0]}; standard errors are {errors}.")
    elif board.name == NAME:
        lines.append(
            f"Means over seeds {', '.join(map(str, seeds))}, as far as measured; standard errors "
            f"are over seeds, where there is one {errors}."
        )
    else:
        lines.append(
            f"Means over seeds {', '.join(map(str, seeds))}; standard errors are over seeds."
        )
    sizes = {name: cell.n for (_, name), cell in cells.items() if cell.n is not None}
    if sizes:
        counted = ", ".join(f"{name} {sizes[name]:,}" for name in datasets if name in sizes)
        lines.append(f"Test images: {counted}.")
    if versions := _versions(records):
        lines.append(f"Made with {versions}.")
    lines.extend(_incomplete(board, jobs))
    return tuple(lines)


def _versions(records: Iterable[Record]) -> str:
    """E.g. "transferbench 0.1.0, torch 2.14.0 and 2.15.0"."""
    found: dict[str, set[str]] = {}
    for record in records:
        for package, version in record.made_with.versions.items():
            found.setdefault(package, set()).add(version)
    return ", ".join(f"{package} {' and '.join(sorted(v))}" for package, v in found.items())


def _incomplete(board: Board, jobs: Sequence[Job]) -> list[str]:
    """Say how many jobs have no number that counts, and the command that changes it."""
    jobs = [job for job in jobs if not job.column.published]
    # A record counts even where model or data are not at hand to check it.
    states = dict(count_states(j for j in jobs if not (j.state == "missing" and j.record)))
    states.pop("fresh", None)
    if not states:
        return []
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    retry = " --retry-failed" if "failed" in states else ""
    dagger = " Numbers with † are stale or lack a seed, and count for nothing."
    if not any(job.record for job in jobs if job.state != "fresh"):
        dagger = ""
    # On the local board each row came from a command of its own; none makes the rest.
    command = f"; `transferbench evaluate --all --board {board.name}{retry}` runs what can be run"
    return [f"Of {len(jobs)} jobs: {told}{'' if board.name == NAME else command}.{dagger}"]
