"""Jobs of a board and their states, told before an image, torch, timm or scikit-learn is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferbench.backbones.reference import as_published
from transferbench.data.sources import find_source
from transferbench.errors import NotAtHand, UserError
from transferbench.leaderboard.board import Board, short_name
from transferbench.leaderboard.portable import portable
from transferbench.leaderboard.record import (
    NOTHING,
    DataPart,
    JobDescription,
    ModelPart,
    ProtocolPart,
    Reading,
    Record,
    State,
    read,
    record_path,
    state_of,
)
from transferbench.leaderboard.tasks import Task

if TYPE_CHECKING:
    from transferbench.backbones.reference import Reference
    from transferbench.data.dataset import Card
    from transferbench.data.sources import Source


@dataclass(frozen=True)
class Entrant:
    """A model that takes part: its short name and its reference for each seed."""

    name: str
    reference: Callable[[int], Reference]


@dataclass(frozen=True)
class Column:
    """A data set that takes part, or the reason why it cannot now.

    Attributes
    ----------
    name : str
        Short name, a column of the table.
    source : Source or None
        None if it is not even known.
    card : Card or None
        Known for some sets that are not at hand; says which protocols apply.
    fingerprint : str
        Empty if the set is not at hand.
    reason, command : str
        Why, and the command that fetches it (empty if there is none).
    find : callable or None
        Finds the source anew; a source remembers what it read of its files.
    published : bool
        Whether its numbers are quoted; it has no source, and records of the first seed alone.
    """

    name: str
    source: Source | None = None
    card: Card | None = None
    fingerprint: str = ""
    reason: str = ""
    command: str = ""
    find: Callable[[], Source] | None = None
    published: bool = False

    def look_again(self) -> Source:
        """Return the source as the files are by now."""
        found = self.find() if self.find is not None else self.source
        assert found is not None
        return found


@dataclass(frozen=True)
class Job:
    """One cell of the grid, for one seed.

    Attributes
    ----------
    path : Path
        Where the record will stand.
    found : Path
        Where it stands now, if it does: there, or beside the board file it came with.
    description : JobDescription or None
        What the key is made from; None where model or data are not at hand.
    state : State
        One of the five.
    reading : Reading
        What stands at the path now.
    reason, command : str
        Why the job cannot run or has failed, and what would help; often empty.
    failed_now : bool
        Whether it was run just now and raised; a number measured before keeps its place.
    """

    entrant: Entrant
    column: Column
    task: Task
    seed: int
    path: Path
    found: Path
    state: State
    description: JobDescription | None = None
    reading: Reading = NOTHING
    reason: str = ""
    command: str = ""
    failed_now: bool = False

    @property
    def title(self) -> str:
        """E.g. "swav on digits, linear, seed 0"."""
        return f"{self.entrant.name} on {self.column.name}, {self.task.name}, seed {self.seed}"

    @property
    def reference(self) -> Reference:
        """The model as the protocol's parameters want it."""
        return _reference(self.entrant, self.seed, self.task.as_published)

    @property
    def record(self) -> Record | None:
        """The measured or published record at hand, also where the state is stale or missing."""
        record = self.reading.record
        return None if record is None or record.kind == "failed" else record

    def plain(self) -> dict[str, Any]:
        """The job as JSON values, as `evaluate --json` prints it."""
        record = self.record
        there = self.reading.record is not None or self.reading.problem is not None
        return {
            "model": self.entrant.name,
            "dataset": self.column.name,
            "protocol": self.task.name,
            "seed": self.seed,
            "state": self.state,
            "metric": record.metric if record else None,
            "value": record.value if record else None,
            "standard_error": record.standard_error if record else None,
            "n": record.n if record else None,
            "record": self.found.as_posix() if there else None,
        }

    def look_again(self) -> Job:
        """Return the job with the state that its record has by now."""
        if self.description is None:
            return self
        reading = read(self.path)
        state = state_of(reading, self.description.key)
        reason = reason_of(reading, state)
        return replace(self, reading=reading, found=self.path, state=state, reason=reason)


def columns(
    datasets: Iterable[str], data_root: Path | None, *, known: bool = False, strict: bool = False
) -> list[Column]:
    """Find data sets and their fingerprints.

    Parameters
    ----------
    datasets : iterable of str
        Names, `folder:PATH` or `catalogue:NAME`.
    data_root : Path or None
        Folders below it are data sets, and come before others of the same name.
    known : bool
        Raise where a name is unknown, with the nearest.
    strict : bool
        Raise also where a set is not at hand or is wrong.
    """
    found = []
    for text in datasets:
        name = short_name(text)
        source: Source | None = None
        card: Card | None = None
        try:
            source = find_source(text, data_root=data_root)
            card = source.card
            fingerprint = source.identity()
            if "test" not in card.counts:
                raise UserError(f"the data set '{text}' has no test split to evaluate on")
            find = partial(find_source, text, data_root=data_root)
            found.append(Column(name, source, card, fingerprint, find=find))
        except UserError as error:
            if strict or (known and source is None and not isinstance(error, NotAtHand)):
                raise
            reason, command = why(error)
            found.append(Column(name, source, card, "", reason, command))
    return found


def why(error: UserError) -> tuple[str, str]:
    """Return an error's reason and the command that helps, if there is one."""
    if isinstance(error, NotAtHand):
        return error.reason, error.command
    return str(error), ""


def plan(
    board: Board,
    entrants: Sequence[Entrant],
    columns: Sequence[Column],
    tasks: Sequence[Task],
    seeds: Sequence[int],
    *,
    strict: bool = False,
) -> list[Job]:
    """List the jobs of a grid with their states; where a protocol does not apply there is none.

    Parameters
    ----------
    strict : bool
        Raise where a model is not at hand or is wrong, instead of calling its jobs missing.

    Returns
    -------
    list of Job
        Model by model, so that each is loaded once; within it by data set, protocol, seed.
    """
    jobs = []
    for entrant in entrants:
        identities = {
            (seed, published): _identity(entrant, seed, published, strict=strict)
            for seed in seeds
            for published in {task.as_published for task in tasks}
        }
        for column in columns:
            for task in tasks:
                if not applies(task, column):
                    continue
                for seed in seeds[:1] if column.published else seeds:
                    identity = identities[seed, task.as_published]
                    jobs.append(_job(board, entrant, column, task, seed, identity))
    return jobs


def applies(task: Task, column: Column) -> bool:
    """Return whether a protocol applies to a data set; yes, as far as an absent set can tell."""
    card = column.card
    return card is None or (task.protocol.applies_to(card) and task.parameters.suit(card))


def stored(board: Board, path: Path) -> tuple[Reading, Path]:
    """Read a board's record: in its own folder, else beside the board file it came with."""
    reading = read(path)
    if reading == NOTHING and board.file is not None:
        packaged = board.file.parent / path.relative_to(board.folder)
        if (beside := read(packaged)) != NOTHING:
            return beside, packaged
    return reading, path


def shard(jobs: Sequence[Job], text: str) -> list[Job]:
    """Return the i-th of n parts, given as "i/n" counted from 1.

    Jobs on the same model and data set stay together, because they share features. The parts
    do not depend on what is done already, so that n processes may start at different times.

    Raises
    ------
    UserError
        If the text is not of this form.
    """
    left, slash, right = text.partition("/")
    if not (slash and left.isdecimal() and right.isdecimal() and 1 <= int(left) <= int(right)):
        raise UserError(f"--shard {text}: write i/n with 1 <= i <= n, e.g. --shard 1/4")
    part, parts = int(left), int(right)
    groups: dict[tuple[str, str], int] = {}
    chosen = []
    for job in jobs:
        group = groups.setdefault((job.entrant.name, job.column.name), len(groups))
        if group % parts == part - 1:
            chosen.append(job)
    return chosen


def to_run(jobs: Iterable[Job], *, retry_failed: bool) -> list[Job]:
    """Return the jobs that have something to do: stale, missing yet at hand, failed if asked."""
    wanted = {"stale", "missing"} | ({"failed"} if retry_failed else set())
    return [job for job in jobs if job.description is not None and job.state in wanted]


def reason_of(reading: Reading, state: State) -> str:
    """What a record itself says about its state: the failure, or why it cannot be read."""
    if reading.problem is not None:
        return f"{reading.problem}; move the file away to let the job run"
    if state == "failed" and reading.record is not None:
        return str(reading.record.details.get("error", "the job failed"))
    return ""


@dataclass(frozen=True)
class _Identity:
    reference: str
    content: dict[str, Any] | None
    reason: str = ""
    command: str = ""


def _reference(entrant: Entrant, seed: int, published: bool) -> Reference:
    reference = entrant.reference(seed)
    return as_published(reference) if published else reference


def _identity(entrant: Entrant, seed: int, published: bool, *, strict: bool) -> _Identity:
    try:
        reference = _reference(entrant, seed, published)
        return _Identity(portable(reference.text), reference.identity())
    except UserError as error:
        if strict:
            raise
        return _Identity("", None, *why(error))


def _job(
    board: Board, entrant: Entrant, column: Column, task: Task, seed: int, identity: _Identity
) -> Job:
    path = record_path(board.folder, entrant.name, column.name, task.name, seed)
    reading, found = stored(board, path)
    job = Job(entrant, column, task, seed, path, found, "missing", reading=reading)
    description = _describe(job, identity)
    if description is None:
        # Reported first: a file that cannot be read stays wrong whatever else is at hand.
        if reading.problem is not None:
            return replace(job, state="unreadable", reason=reason_of(reading, "unreadable"))
        absent = column if identity.content is not None else identity
        return replace(job, reason=absent.reason, command=absent.command)
    state = state_of(reading, description.key)
    return replace(job, description=description, state=state, reason=reason_of(reading, state))


def _describe(job: Job, identity: _Identity) -> JobDescription | None:
    """What the job's key is made from, or None where model or data are not at hand."""
    column, task, card = job.column, job.task, job.column.card
    if not column.fingerprint or card is None or column.source is None or identity.content is None:
        return None
    return JobDescription(
        model=ModelPart(
            name=job.entrant.name, reference=identity.reference, identity=identity.content
        ),
        dataset=DataPart(
            name=column.name,
            source=column.source.kind,
            task=card.task,
            metric=card.metric,
            fingerprint=column.fingerprint,
        ),
        protocol=ProtocolPart(
            name=task.name,
            protocol=task.registered,
            version=task.protocol.version,
            parameters=task.parameters.model_dump(mode="json"),
        ),
        seed=job.seed,
    )


def count_states(jobs: Iterable[Job]) -> Iterator[tuple[State, int]]:
    """Count jobs by state, in the states' order, leaving out those that no job is in."""
    from transferbench.leaderboard.record import STATES

    states = [job.state for job in jobs]
    for state in STATES:
        if number := states.count(state):
            yield state, number
