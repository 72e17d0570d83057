"""Stand-ins for models, data sets and protocols: what a board sees of the rooms below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transferbench.data.dataset import Card
from transferbench.errors import NotAtHand
from transferbench.leaderboard.board import Board, BoardFile
from transferbench.leaderboard.jobs import Column, Entrant, Job, plan
from transferbench.leaderboard.record import (
    Cost,
    DataPart,
    JobDescription,
    MadeWith,
    ModelPart,
    ProtocolPart,
    Record,
)
from transferbench.leaderboard.tasks import Task
from transferbench.protocols.protocol import Outcome, Parameters


@dataclass
class FakeReference:
    """A model known by its digest; absent if that is empty."""

    name: str
    digest: str = "d"
    load_error: Exception | None = None
    loads: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return f"run:runs/{self.name}"

    def identity(self) -> dict[str, Any]:
        if not self.digest:
            raise NotAtHand(f"there is no run {self.name}", f"pretrain {self.name}")
        return {"digest": self.digest}

    def load(self, device: str) -> Any:
        self.loads.append(device)
        if self.load_error is not None:
            raise self.load_error
        return FakeBackbone(self.name, self.digest)


@dataclass
class FakeBackbone:
    name: str
    digest: str
    notes: dict[str, str] = field(default_factory=lambda: {"pooling": "avg"})


@dataclass
class FakeSplit:
    name: str
    size: int = 5
    skipped: int = 0

    def __len__(self) -> int:
        return self.size


@dataclass
class FakeDataset:
    name: str
    splits: dict[str, FakeSplit]
    fingerprint: str
    repeats: int = 0


@dataclass
class FakeSource:
    name: str
    card: Card
    fingerprint: str = ""
    error: Exception | None = None
    loads: int = 0
    skipped: int = 0
    kind: str = "embedded"

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or f"f-{self.name}"

    def identity(self) -> str:
        return self.fingerprint

    def load(self, **options: Any) -> Any:
        self.loads += 1
        if self.error is not None:
            raise self.error
        return FakeDataset(
            self.name, {"test": FakeSplit("test", skipped=self.skipped)}, self.fingerprint
        )


class FakeParameters(Parameters):
    k: int = 1


@dataclass
class FakeProtocol:
    """Gives `value`, raises it or asks it; applies to single-label sets."""

    value: float | Exception | Callable[[Any, Any], float] = 0.5
    version: int = 1
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    during: Callable[[], None] = lambda: None
    name = "fake"
    Parameters = FakeParameters

    def applies_to(self, card: Card) -> bool:
        return card.task == "multiclass"

    def run(
        self, backbone: Any, dataset: Any, parameters: Any, *, seed: int, **options: Any
    ) -> Outcome:
        self.calls.append((backbone.name, dataset.name, seed))
        self.during()
        if callable(self.value):
            return Outcome("top1", self.value(backbone, dataset), 0.01, 5)
        if isinstance(self.value, Exception):
            raise self.value
        return Outcome(
            "top1", self.value, 0.01, 5, {"k": parameters.k}, np.arange(5), {"fit": 0.25}
        )


def make_card(name: str, task: str = "multiclass") -> Card:
    metric = "top1" if task == "multiclass" else "map11"
    return Card(name=name, task=task, metric=metric, classes=2, counts={"train": 5, "test": 5})


def make_column(name: str, task: str = "multiclass", **options: Any) -> Column:
    card = make_card(name, task)
    source = FakeSource(name, card, **options)
    return Column(name, source, card, source.fingerprint)  # type: ignore[arg-type]


def make_task(name: str = "linear", protocol: FakeProtocol | None = None) -> Task:
    return Task(name, "fake", protocol or FakeProtocol(), FakeParameters())  # type: ignore[arg-type]


def make_entrant(name: str, reference: FakeReference | None = None) -> Entrant:
    there = reference or FakeReference(name, digest=name)
    return Entrant(name, lambda seed: there)


def make_job_description(
    model: str = "swav", dataset: str = "digits", protocol: str = "linear", seed: int = 0
) -> JobDescription:
    return JobDescription(
        model=ModelPart(name=model, reference="run:runs/x", identity={"digest": model}),
        dataset=DataPart(
            name=dataset, source="embedded", task="multiclass", metric="top1", fingerprint="f"
        ),
        protocol=ProtocolPart(name=protocol, protocol="fake", version=1, parameters={"k": 1}),
        seed=seed,
    )


def make_record(
    value: float | None = 0.5, job: JobDescription | None = None, **changes: Any
) -> Record:
    job = job or make_job_description()
    made = Record(
        kind="measured" if value is not None else "failed",
        key=job.key,
        job=job,
        metric="top1" if value is not None else None,
        value=value,
        standard_error=0.01 if value is not None else None,
        n=100 if value is not None else None,
        details={} if value is not None else {"error": "ValueError: broken"},
        cost=Cost(seconds={"total": 1.5}, device="cpu"),
        made_with=MadeWith(versions={"transferbench": "0.1.0", "torch": "2.14.0"}),
    )
    return made.model_copy(update=changes)


def make_board(name: str = "test", **content: Any) -> Board:
    return Board(name, None, BoardFile.model_validate(content))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: boards and runs are relative to it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def make_jobs(
    models: list[Entrant],
    columns: list[Column],
    tasks: list[Task],
    seeds: list[int],
    **options: Any,
) -> list[Job]:
    return plan(make_board(seeds=seeds), models, columns, tasks, seeds, **options)


def with_state(job: Job, **changes: Any) -> Job:
    return replace(job, **changes)
