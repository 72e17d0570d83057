"""One JSON file per job: what was measured, from what, at what cost, with which versions.

A record is content-addressed: its key is the digest of everything that can change the number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from transferbench.errors import UserError
from transferbench.leaderboard.units import SHARES
from transferbench.storage import canonical_json, digest, in_turn, make_folder, write_atomic

if TYPE_CHECKING:
    from transferbench.protocols.protocol import Outcome

State = Literal["fresh", "stale", "missing", "failed", "unreadable"]
STATES: tuple[State, ...] = ("fresh", "stale", "missing", "failed", "unreadable")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(_Strict):
    """The model of a job: its short name, the reference it comes from, what identifies it."""

    name: str
    reference: str
    identity: dict[str, Any]


class DataPart(_Strict):
    """The data set of a job.

    Attributes
    ----------
    name : str
        Short name, a column of the table.
    source : str
        Where it was found: "embedded", "folder" or "catalogue".
    task, metric : str
        As its card says.
    fingerprint : str
        Digest of the splits' content and the card.
    """

    name: str
    source: str
    task: str
    metric: str
    fingerprint: str


class ProtocolPart(_Strict):
    """The protocol of a job: the board's short name, the registered name, version, parameters."""

    name: str
    protocol: str
    version: int
    parameters: dict[str, Any]


class JobDescription(_Strict):
    """Everything a job's key is made from, and the short names it goes by."""

    model: ModelPart
    dataset: DataPart
    protocol: ProtocolPart
    seed: int

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of what can change the number; short names cannot."""
        return digest(
            {
                "model": self.model.identity,
                "data": self.dataset.fingerprint,
                "protocol": {
                    "name": self.protocol.protocol,
                    "version": self.protocol.version,
                    "parameters": self.protocol.parameters,
                },
                "seed": self.seed,
            }
        )


class Cost(_Strict):
    """What a job took.

    Attributes
    ----------
    seconds : dict
        Wall-clock seconds per phase; "total" is the whole job.
    device : str
        "cpu", "cuda" ...
    peak_memory_mib : float or None
        Of the process (CPU) or the device (CUDA), in MiB.
    images_per_second : float or None
        Images of all splits over the whole job's seconds; higher where features were cached.
    """

    seconds: dict[str, float] = Field(default_factory=dict)
    device: str = ""
    peak_memory_mib: float | None = None
    images_per_second: float | None = None


class MadeWith(_Strict):
    """Versions of the packages that compute, and the command line without absolute paths."""

    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""


class Record(_Strict):
    """The result of one job.

    Attributes
    ----------
    schema_version : 1
        Stands as "schema" in the file.
    kind : {"measured", "published", "failed"}
        Measured here, quoted from a publication, or the record of a failure.
    key : str
        The job's key at the time; empty for a published number, which no job makes.
    job : JobDescription
        What the key was made from.
    metric : str or None
        E.g. "top1". None for a failure.
    value, standard_error : float or None
        In the metric's own unit (shares in 0..1), and its bootstrap error over test images.
    n : int or None
        Number of test images.
    details : dict
        What the protocol tells; for a failure the error and where it arose.
    predictions : str or None
        Digest of the per-image test predictions in the cache.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["measured", "published", "failed"]
    key: str
    job: JobDescription
    metric: str | None = None
    value: float | None = None
    standard_error: float | None = None
    n: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    predictions: str | None = None
    cost: Cost = Cost()
    made_with: MadeWith = MadeWith()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        numbers = [x for x in (self.value, self.standard_error) if x is not None]
        if not all(math.isfinite(x) for x in numbers):
            raise ValueError("value and standard_error must be finite numbers")
        if self.kind == "failed" and self.value is not None:
            raise ValueError("a failure has no value")
        if self.kind != "failed" and (self.value is None or self.metric is None):
            raise ValueError(f"a {self.kind} record needs metric and value")
        if self.value is not None and self.metric in SHARES and not 0.0 <= self.value <= 1.0:
            raise ValueError(f"{self.metric} must lie in 0..1, not {self.value}")
        if self.kind != "published" and self.key != self.job.key:
            raise ValueError("the key is not that of the job that the record tells")
        return self

    def dumps(self) -> str:
        """Return the record as indented JSON text, in the order of the schema."""
        plain = self.model_dump(mode="json", by_alias=True)
        canonical_json(plain)  # refuses NaN, which JSON has not
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Reading:
    """What stands at a record's path: a record, a problem, or (both None) nothing."""

    record: Record | None = None
    problem: str | None = None


NOTHING = Reading()


def record_path(folder: Path, model: str, dataset: str, protocol: str, seed: int) -> Path:
    """Return `folder`/records/<model>/<dataset>/<protocol>-<seed>.json."""
    return folder / "records" / model / dataset / f"{protocol}-{seed}.json"


def read(path: Path) -> Reading:
    """Read a record; what cannot be read is told, never raised and never touched."""
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING
    except OSError as error:
        return Reading(problem=f"{path} cannot be read: {error.strerror}")
    try:
        return Reading(record=Record.model_validate_json(text))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        said = problem["msg"].removeprefix("Value error, ")
        return Reading(problem=f"{path} is no record: {f'{place}: ' if place else ''}{said}")


def state_of(reading: Reading, key: str) -> State:
    """Tell a job's state from what stands at its path.

    A record of another key is stale whatever its kind: a failure on other inputs says nothing
    about these. A published number belongs to no job and is never stale.
    """
    if reading.problem is not None:
        return "unreadable"
    if reading.record is None:
        return "missing"
    if reading.record.kind == "published":
        return "fresh"
    if reading.record.key != key:
        return "stale"
    return "failed" if reading.record.kind == "failed" else "fresh"


def write(path: Path, record: Record) -> bool:
    """Write a record, and return whether it was written.

    Concurrent writers take turns, so that a failure never overwrites a measured or published
    record, whoever wrote that; then nothing is written.

    Raises
    ------
    UserError
        If the file there is unreadable (it is left alone), or the folder is read-only.
    """
    text = record.dumps()
    make_folder(path.parent)
    with in_turn(path.parent):
        there = read(path)
        if there.problem is not None:
            raise UserError(f"{there.problem}; move the file away to let the job run")
        if record.kind == "failed" and there.record and there.record.kind != "failed":
            return False
        write_atomic(path, text)
    return True


def read_all(folder: Path) -> tuple[dict[Path, Record], list[str]]:
    """Read every record below a board's folder.

    Returns
    -------
    records : dict
        By path, sorted.
    problems : list of str
        One sentence per unreadable file.
    """
    records: dict[Path, Record] = {}
    problems: list[str] = []
    for path in sorted((folder / "records").glob("*/*/*.json")):
        reading = read(path)
        if reading.record is not None:
            records[path] = reading.record
        elif reading.problem is not None:
            problems.append(reading.problem)
    return records, problems


def versions() -> dict[str, str]:
    """Versions of the packages that compute, found without importing them."""
    from importlib.metadata import version

    return {name: version(name) for name in ("transferbench", "torch", "timm", "scikit-learn")}


def measured(
    job: JobDescription,
    outcome: Outcome,
    *,
    predictions: str | None,
    skipped: Mapping[str, int],
    repeats: int = 0,
    backbone: Mapping[str, Any] | None = None,
    cost: Cost,
    made_with: MadeWith,
) -> Record:
    """Return the record of what a protocol reports.

    Parameters
    ----------
    predictions : str or None
        Digest of the kept per-image predictions.
    skipped : mapping
        Corrupt images that were left out, by split.
    repeats : int
        Test images that are also among those to train on.
    backbone : mapping, optional
        What loading the model found: pooling, and of a weights file what it held and was dropped.
    """
    details = dict(outcome.details)
    if backbone:
        details["backbone"] = dict(backbone)
    if repeats:
        details["test_images_in_training"] = repeats
    if skipped:
        details["skipped_images"] = dict(skipped)
    return Record(
        kind="measured",
        key=job.key,
        job=job,
        metric=outcome.metric,
        value=outcome.value,
        standard_error=outcome.standard_error,
        n=outcome.n,
        details=details,
        predictions=predictions,
        cost=cost,
        made_with=made_with,
    )


def failure(
    kind: str,
    said: str,
    job: JobDescription,
    *,
    trace: Sequence[str],
    cost: Cost,
    made_with: MadeWith,
) -> Record:
    """Return the record of a failure.

    Parameters
    ----------
    kind : str
        The exception's name; empty where the sentence speaks for itself.
    said : str
        Its message, one line.
    trace : sequence of str
        The last frames, one line each.
    """
    details: dict[str, Any] = {"error": f"{kind}: {said}" if kind else said}
    if trace:
        details["trace"] = list(trace)
    return Record(
        kind="failed", key=job.key, job=job, details=details, cost=cost, made_with=made_with
    )
