"""Running jobs: a model is loaded once, a record is written the moment its job ends."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from transferbench.data.dataset import FILTERS, Wanted
from transferbench.errors import NotAtHand, UserError
from transferbench.leaderboard.jobs import Job
from transferbench.leaderboard.portable import portable
from transferbench.leaderboard.predictions import keep_predictions
from transferbench.leaderboard.record import (
    Cost,
    JobDescription,
    MadeWith,
    Record,
    failure,
    measured,
    versions,
    write,
)
from transferbench.leaderboard.units import shown
from transferbench.progress import SILENT, Progress
from transferbench.storage import digest

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Dataset
    from transferbench.protocols.protocol import Outcome


@dataclass(frozen=True)
class Strictness:
    """What a user named alone, so that bad input there is an error at once, not a failed job.

    Attributes
    ----------
    model, data : bool
        The one model, the one data set was named.
    """

    model: bool = False
    data: bool = False


@dataclass
class Session:
    """What one `evaluate` holds while it works through its jobs.

    Attributes
    ----------
    device : str
        Where networks run, e.g. "cpu" or "cuda".
    skip_corrupt : int
        Corrupt images that may be left out, per data set.
    command : str
        Written into records; without absolute paths.
    strict : Strictness
        Where bad input is raised.
    load_ahead : bool
        Load, and so check, all data sets before the first job.
    progress : Progress
        Shows jobs, extraction and fits.
    before_record : callable
        Called before the first record is written, and only then.
    """

    device: str
    skip_corrupt: int = 0
    command: str = ""
    strict: Strictness = Strictness()
    load_ahead: bool = False
    progress: Progress = SILENT
    before_record: Callable[[], object] = lambda: None
    _begun: bool = field(default=False, init=False)
    # What could not be loaded is remembered too: its error serves all jobs that need it.
    # Both are kept by content: two models or sets of one short name are not one.
    _model: tuple[str, Backbone | UserError] | None = field(default=None, init=False)
    _data: dict[str, Dataset | UserError] = field(default_factory=dict, init=False)
    _ahead: dict[str, float] = field(default_factory=dict, init=False)
    _single: bool = field(default=False, init=False)

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Run jobs in order and return them with their new states.

        A job that another process has finished meanwhile is left as it is. A job that raises
        becomes a failed record, unless that would replace a number, and the rest runs; so does
        one whose model or data are no longer those that its key was made from.

        Raises
        ------
        UserError
            If the records' folder is read-only (before any work), or on bad input of what the
            user named alone.
        """
        for job in jobs:
            check_writable(job.path.parent)
        self._single = len(jobs) == 1
        if self.load_ahead or self.strict.data:
            self._look_ahead(jobs)
        done = []
        with self.progress.task("jobs", len(jobs), "jobs") as bar:
            for job in jobs:
                bar.note = job.title
                done.append(self._run(job))
                bar.advance(note=job.title)
        return done

    def _run(self, job: Job) -> Job:
        now = job.look_again()
        if now.description is None or now.state in ("fresh", "unreadable"):
            return now
        # What was loaded ahead counts as the time of the first job that needs it.
        phases = {"load_data": self._ahead.pop(now.description.dataset.fingerprint, 0.0)}
        started = time.monotonic() - phases["load_data"]
        try:
            with _refusing(self.strict.model), _timed(phases, "load_model"):
                backbone = self._backbone(job, now.description)
            with _timed(phases, "load_data"):
                dataset = self._dataset(job, now.description)
            _check_unchanged(now.description, backbone, dataset)
            with _refusing(self._single and (self.strict.model or self.strict.data)):
                outcome = job.task.protocol.run(
                    backbone,
                    dataset,
                    job.task.parameters,
                    seed=job.seed,
                    device=self.device,
                    progress=self.progress,
                )
            images = sum(len(split) for split in dataset.splits.values())
            cost = self._cost(outcome, phases, time.monotonic() - started, images)
            record = measured(
                now.description,
                outcome,
                predictions=keep_predictions(outcome),
                skipped={s.name: s.skipped for s in dataset.splits.values() if s.skipped},
                repeats=dataset.repeats,
                backbone=backbone.notes,
                cost=cost,
                made_with=MadeWith(versions=versions(), command=self.command),
            )
        except NotAtHand as error:
            # What vanished between planning and loading is no failure of the job.
            return replace(now, state="missing", reason=error.reason, command=error.command)
        except _Refused as refused:
            raise refused.error from None
        except Exception as error:
            return self._failed(now, error, time.monotonic() - started)
        self._write(job.path, record)
        value = f"{record.metric} {shown(record.metric) * (record.value or 0):.2f}"
        self.progress.say(f"{job.title}: {value} ({time.monotonic() - started:.1f} s)")
        return job.look_again()

    def _write(self, path: Path, record: Record) -> bool:
        if not self._begun:
            self.before_record()
            self._begun = True
        return write(path, record)

    def _look_ahead(self, jobs: Sequence[Job]) -> None:
        """Load all data sets; what is wrong with one is raised where strict, else remembered."""
        for job in jobs:
            if job.description is None or job.description.dataset.fingerprint in self._data:
                continue
            started = time.monotonic()
            try:
                self._dataset(job, job.description)
            except UserError:
                if self.strict.data:
                    raise
            self._ahead[job.description.dataset.fingerprint] = time.monotonic() - started

    def _dataset(self, job: Job, description: JobDescription) -> Dataset:
        key = description.dataset.fingerprint
        if key not in self._data:
            try:
                self._data[key] = job.column.look_again().load(
                    skip_corrupt=self.skip_corrupt,
                    progress=self.progress,
                    wanted=_wanted(description),
                )
            except UserError as error:
                self._data[key] = error
        loaded = self._data[key]
        if isinstance(loaded, UserError):
            raise loaded
        return loaded

    def _backbone(self, job: Job, description: JobDescription) -> Backbone:
        key = digest(description.model.identity)
        if self._model is None or self._model[0] != key:
            self._model = None  # frees the last one before the next is built
            try:
                self._model = (key, self._loaded(job, description))
            except UserError as error:
                self._model = (key, error)
        loaded = self._model[1]
        if isinstance(loaded, UserError):
            raise loaded
        return loaded

    def _loaded(self, job: Job, description: JobDescription) -> Backbone:
        from transferbench.backbones.late import load_or_wait

        reference = job.reference

        def load() -> Backbone:
            with _refusing(self.strict.model):
                return reference.load(self.device)

        return load_or_wait(reference.name, description.model.identity, load, device=self.device)

    def _cost(self, outcome: Outcome, phases: dict[str, float], total: float, images: int) -> Cost:
        seconds = {**phases, **outcome.cost, "total": total}
        return Cost(
            seconds={name: round(value, 3) for name, value in seconds.items()},
            device=self.device,
            peak_memory_mib=round(_peak_memory(self.device), 1),
            images_per_second=round(images / total, 1),
        )

    def _failed(self, job: Job, error: Exception, seconds: float) -> Job:
        assert job.description is not None
        said = portable(" ".join(str(error).split()))
        record = failure(
            type(error).__name__ if not isinstance(error, UserError) else "",
            said,
            job.description,
            trace=[] if isinstance(error, UserError) else _trace(error),
            cost=Cost(seconds={"total": round(seconds, 3)}, device=self.device),
            made_with=MadeWith(versions=versions(), command=self.command),
        )
        written = self._write(job.path, record)
        kept = "" if written else "; the number measured before is kept"
        # Why is told at the end, once for all jobs that failed alike.
        self.progress.say(f"{job.title}: failed{kept}")
        after = job.look_again()
        # The failure is told even where a number that was measured before keeps its place.
        return replace(after, failed_now=True, reason=str(record.details["error"]))


class _Refused(Exception):
    """Carries a user's error past the net that turns exceptions into failed records."""

    def __init__(self, error: UserError) -> None:
        super().__init__(str(error))
        self.error = error


def check_writable(folder: Path) -> None:
    """Check, without a trace, that files could be made in a folder that may not exist yet.

    Raises
    ------
    UserError
        If it, or the nearest folder above it that exists, is read-only or no folder.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UserError(f"cannot write to {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: the folder {there} is read-only")


def _check_unchanged(job: JobDescription, backbone: Backbone, dataset: Dataset) -> None:
    """Check that what was loaded is what the job's key was made from.

    Raises
    ------
    UserError
        If a file was replaced since the jobs were planned.
    """
    if backbone.digest != job.model.identity.get("digest"):
        changed = f"the model '{job.model.name}'"
    elif dataset.fingerprint != job.dataset.fingerprint:
        changed = f"the data set '{job.dataset.name}'"
    else:
        return
    raise UserError(f"{changed} changed while the evaluation ran; run again")


def _wanted(job: JobDescription) -> Wanted | None:
    """At which pixels the job's model will ask for images, as far as its identity tells."""
    said = job.model.identity.get("preprocessing")
    if not isinstance(said, dict):
        return None
    size, how = said.get("input_size"), said.get("interpolation")
    return Wanted(size, how) if isinstance(size, int) and how in FILTERS else None


@contextmanager
def _refusing(strict: bool) -> Iterator[None]:
    """Where strict, take a user's error past the net."""
    try:
        yield
    except UserError as error:
        if strict:
            raise _Refused(error) from error
        raise


@contextmanager
def _timed(phases: dict[str, float], phase: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    phases[phase] = phases.get(phase, 0.0) + time.monotonic() - started


def _peak_memory(device: str) -> float:
    """Highest memory use so far in MiB: of the device if it is CUDA, else of the process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _trace(error: Exception, last: int = 8) -> list[str]:
    """The last frames of a traceback, one line each, files by their names in the package."""
    lines = []
    for frame in traceback.extract_tb(error.__traceback__)[-last:]:
        parts = Path(frame.filename).parts
        start = next((i for i, p in enumerate(parts) if p == "site-packages"), len(parts) - 3)
        lines.append(f"{'/'.join(parts[start + 1 :])}:{frame.lineno} in {frame.name}: {frame.line}")
    return lines
