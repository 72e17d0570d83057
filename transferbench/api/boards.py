"""A board's jobs to records, and its records to tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from transferbench import registry
from transferbench.api.entrants import (
    board_entrants,
    board_seeds,
    choose,
    finished_runs,
    named,
    other_recipe,
    reference_entrant,
)
from transferbench.api.machine import RUNS, check_device, choose_device, find_root
from transferbench.data.sources import sources_at_hand
from transferbench.errors import UserError, unknown
from transferbench.leaderboard.board import Board, find_board, short_name
from transferbench.leaderboard.evaluation import Session, Strictness, check_writable
from transferbench.leaderboard.jobs import (
    Column,
    Entrant,
    Job,
    columns,
    count_states,
    plan,
    shard,
    to_run,
)
from transferbench.leaderboard.local import (
    existing_board,
    extended,
    held_by_other,
    local_board,
    refuse_equal_names,
    save_extended,
)
from transferbench.leaderboard.portable import command_line
from transferbench.leaderboard.tasks import Task, tasks
from transferbench.progress import Progress
from transferbench.protocols.variants import VARIANTS

if TYPE_CHECKING:
    from transferbench.leaderboard.table import Table

T = TypeVar("T")
PROTOCOLS = ("linear", "knn")
"""Those of an evaluation without a board that names none."""


@dataclass(frozen=True)
class Grid:
    """Models, data sets, protocols and seeds that meet, and the board that keeps their records."""

    board: Board
    entrants: Sequence[Entrant]
    columns: Sequence[Column]
    tasks: Sequence[Task]
    seeds: Sequence[int]

    def jobs(self, *, strict: bool = False) -> list[Job]:
        """List the jobs with their states."""
        return plan(self.board, self.entrants, self.columns, self.tasks, self.seeds, strict=strict)


@dataclass(frozen=True)
class Evaluation:
    """What became of the jobs that were asked for.

    Attributes
    ----------
    board : str
        The board's name.
    jobs : list of Job
        All of them, those that were fresh before included.
    ran, todo : int
        How many were run, and how many were to be run.
    none : str
        Why there is no job at all.
    """

    board: str
    jobs: list[Job]
    ran: int
    todo: int
    none: str = ""

    def plain(self) -> dict[str, Any]:
        """The jobs as JSON values, as `evaluate --json` prints them."""
        return {"board": self.board, "jobs": [job.plain() for job in self.jobs]}

    @property
    def failed(self) -> bool:
        """Whether a job failed just now."""
        return any(job.failed_now for job in self.jobs)

    @property
    def unreadable(self) -> bool:
        """Whether a record cannot be read, which keeps its job from running."""
        return any(job.state == "unreadable" for job in self.jobs)

    @property
    def states(self) -> str:
        """E.g. "28 fresh, 2 missing"."""
        return ", ".join(f"{number} {state}" for state, number in count_states(self.jobs))


def evaluate_board(
    board: str | None = None,
    *,
    models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    protocols: Sequence[str] = (),
    seeds: Sequence[int] = (),
    device: str | None = None,
    runs: str | Path = RUNS,
    data_root: str | Path | None = None,
    retry_failed: bool = False,
    dry_run: bool = False,
    part: str | None = None,
    skip_corrupt: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Run the jobs of a board that are not fresh, one record each.

    Parameters
    ----------
    board : str, optional
        A board's name or path. Without it the records go to ./leaderboards/local, the models are
        references, and by default every finished run, every data set at hand with a test split,
        and the protocols linear and knn take part.
    models, datasets, protocols, seeds : sequences
        Only these: of the board its short names, without a board references, data sets, protocols.
    retry_failed : bool
        Run jobs again whose record is that of a failure.
    dry_run : bool
        Tell the states and run nothing.
    part : str, optional
        "i/n": only the i-th of n parts of the jobs.
    skip_corrupt : int
        Corrupt images that may be left out, per data set.

    Raises
    ------
    UserError
        On bad input. Nothing is written if it concerns the names, or the one model or the one
        data set that was named; otherwise it becomes the failure of the jobs it concerns.
    """
    check_device(device)
    progress = progress or Progress()
    root = find_root(data_root)
    if board is None:
        grid, save = _local_grid(models, datasets, protocols, seeds, Path(runs), root)
    else:
        grid, save = _board_grid(board, models, datasets, protocols, seeds, Path(runs), root)
        for folder in other_recipe(grid.board, Path(runs)):
            progress.say(f"note: the run {folder} comes from another recipe than the board's")
    named_models = board is None and bool(models)
    jobs = grid.jobs(strict=named_models)
    none = "" if jobs else _why_none(grid)
    if part is not None:
        jobs = shard(jobs, part)
        none = none or f"the part {part} has no job"
    todo = to_run(jobs, retry_failed=retry_failed)
    if dry_run:
        return Evaluation(grid.board.name, jobs, 0, len(todo), none)
    if todo:
        check_writable(grid.board.folder)
        session = Session(
            device=choose_device(device),
            skip_corrupt=skip_corrupt,
            command=command_line(),
            strict=Strictness(
                model=named_models and len(models) == 1,
                data=board is None and len(grid.columns) == len(set(datasets)) == 1,
            ),
            load_ahead=bool(datasets),
            progress=progress,
            before_record=save,
        )
        done = {id(job): after for job, after in zip(todo, session.run(todo), strict=True)}
        jobs = [done.get(id(job), job) for job in jobs]
    elif any(job.record for job in jobs):
        save()
    return Evaluation(grid.board.name, jobs, len(todo), len(todo), none)


@dataclass(frozen=True)
class Leaderboard:
    """A board's tables.

    Attributes
    ----------
    problems : list of str
        One sentence for each record that cannot be read.
    """

    board: Board
    tables: list[Table]
    problems: list[str]

    @property
    def readme(self) -> Path:
        """Where the markdown goes."""
        return self.board.folder / "README.md"

    @property
    def command(self) -> str:
        """The command that renders it."""
        option = "" if self.board.name == "local" else f" --board {self.board.name}"
        return f"transferbench leaderboard{option}"

    def markdown(self, *, errors: bool = False) -> str:
        """The README's text with the tables of now; text outside the markers as it is."""
        from transferbench.leaderboard.render import markdown

        rendered = markdown.render(self.tables, errors=errors)
        text = markdown.read(self.readme)
        return markdown.update(text, self.board.title, self.command, rendered, self.readme)

    def save(self, *, errors: bool = False) -> bool:
        """Write the README if it changes, and return whether it did."""
        from transferbench.leaderboard.render import markdown

        return markdown.save(self.readme, self.markdown(errors=errors))

    def is_current(self, *, errors: bool = False) -> bool:
        """Whether the README is what would be rendered; with or without errors, unless asked."""
        from transferbench.leaderboard.render import markdown

        text = markdown.read(self.readme)
        variants = {True} if errors else {False, True}
        return text is not None and any(text == self.markdown(errors=e) for e in variants)


def leaderboard(
    board: str | None = None,
    *,
    runs: str | Path = RUNS,
    data_root: str | Path | None = None,
) -> Leaderboard:
    """Make the tables of a board, ./leaderboards/local without one, from its records.

    Raises
    ------
    UserError
        If there is no such board, or it is wrong.
    """
    from transferbench.leaderboard.table import build_tables

    found = existing_board() if board is None else find_board(board)
    grid = whole_grid(found, Path(runs), find_root(data_root))
    jobs = grid.jobs()
    tables = build_tables(found, grid.entrants, grid.columns, grid.tasks, jobs)
    problems = [job.reading.problem for job in jobs if job.reading.problem is not None]
    return Leaderboard(found, tables, problems)


def whole_grid(board: Board, runs: Path, root: Path | None) -> Grid:
    """All that a board names, published columns included."""
    content = board.content
    return Grid(
        board,
        board_entrants(board, runs),
        [
            *columns(content.datasets, root),
            *(Column(name, published=True) for name in content.published),
        ],
        tasks(content.protocols, str(board)),
        content.seeds,
    )


def _board_grid(
    name: str,
    models: Sequence[str],
    datasets: Sequence[str],
    protocols: Sequence[str],
    seeds: Sequence[int],
    runs: Path,
    root: Path | None,
) -> tuple[Grid, Callable[[], object]]:
    """The part of a board that is asked for; a board file is a person's and never written."""
    board = find_board(name)
    content = board.content
    entrants = choose(board_entrants(board, runs), models, board)
    sets = _chosen(content.datasets, datasets, short_name, "data set", board)
    tables = _chosen(content.protocols, protocols, lambda p: p.name, "protocol", board)
    grid = Grid(
        board,
        entrants,
        _known_columns(sets, root),
        tasks(tables, str(board)),
        board_seeds(board, seeds),
    )
    return grid, lambda: None


def _local_grid(
    models: Sequence[str],
    datasets: Sequence[str],
    protocols: Sequence[str],
    seeds: Sequence[int],
    runs: Path,
    root: Path | None,
) -> tuple[Grid, Callable[[], object]]:
    """What is asked for without a board, and how the local board remembers it."""
    # The board file is the user's to edit: a protocol there may have parameters.
    there = [entry.name for entry in local_board().content.protocols]
    for protocol in protocols:
        if protocol not in (valid := {*registry.names("protocols"), *VARIANTS, *there}):
            raise unknown("protocol", protocol, valid)
    chosen = list(dict.fromkeys(protocols or PROTOCOLS))
    sets = list(dict.fromkeys(datasets)) or _sets_at_hand(root)
    refuse_equal_names("data sets", [(short_name(text), text) for text in sets])
    found = columns(sets, root, strict=bool(datasets))
    before = local_board()
    for place, (text, column) in enumerate(zip(list(sets), found, strict=True)):
        if column.fingerprint and (other := held_by_other(before, text, column.fingerprint)):
            if datasets:
                raise UserError(other)
            sets.remove(text)
            found[place] = replace(column, fingerprint="", reason=other)
    rows = list(dict.fromkeys(named(text) for text in models)) if models else finished_runs(runs)
    refuse_equal_names("models", rows)
    numbers = sorted(set(seeds)) or [0]

    def save() -> None:
        save_extended(models=rows, datasets=sets, protocols=chosen, seeds=numbers)

    board = extended(local_board(), models=rows, datasets=sets, protocols=chosen, seeds=numbers)
    entrants = [reference_entrant(name, text) for name, text in rows]
    entries = [entry for entry in board.content.protocols if entry.name in chosen]
    return Grid(board, entrants, found, tasks(entries, str(board)), numbers), save


def _why_none(grid: Grid) -> str:
    """Why a grid has no job."""
    if not grid.entrants:
        return "no model takes part; `transferbench pretrain --method NAME` makes one"
    if not grid.columns or not grid.tasks:
        return f"no {'protocol' if grid.columns else 'data set'} takes part"
    protocols = " and ".join(task.name for task in grid.tasks)
    sets = ", ".join(column.name for column in grid.columns)
    verb = "does" if len(grid.tasks) == 1 else "do"
    return f"{protocols} {verb} not apply to {sets}"


def _known_columns(sets: Sequence[str], root: Path | None) -> list[Column]:
    try:
        return columns(sets, root, known=True)
    except UserError as error:
        if root is not None:
            raise
        raise UserError(f"{error}; a folder's name needs --data-root") from error


def _sets_at_hand(root: Path | None) -> list[str]:
    """Names of the sets that can be evaluated on; a broken one stays, for its jobs to tell."""
    names = []
    for source in sources_at_hand(root):
        try:
            if "test" not in source.card.counts:
                continue
        except UserError:
            pass
        names.append(source.name)
    return names


def _chosen(
    entries: Sequence[T],
    asked: Sequence[str],
    name: Callable[[T], str],
    what: str,
    board: Board,
) -> list[T]:
    """Those of a board's entries whose names are asked for; all for none."""
    valid = [name(entry) for entry in entries]
    for each in asked:
        if each not in valid:
            raise unknown(what, each, valid, str(board))
    return [entry for entry in entries if not asked or name(entry) in asked]
