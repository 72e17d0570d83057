from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.leaderboard.conftest import (
    FakeProtocol,
    FakeReference,
    FakeSource,
    make_card,
    make_column,
    make_entrant,
    make_jobs,
    make_record,
    make_task,
)
from transferbench.errors import NotAtHand, UserError
from transferbench.leaderboard import evaluation
from transferbench.leaderboard.evaluation import Session, Strictness, check_writable
from transferbench.leaderboard.jobs import Column
from transferbench.leaderboard.record import read, write


def test_a_job_becomes_a_record_with_all_that_it_should_tell(here: Path, fresh_cache: Path) -> None:
    jobs = make_jobs([make_entrant("a")], [make_column("x", skipped=2)], [make_task()], [0])
    (done,) = Session("cpu", command="transferbench evaluate --all").run(jobs)
    assert done.state == "fresh"
    record = read(done.path).record
    assert record is not None
    assert (record.kind, record.metric, record.value, record.n) == ("measured", "top1", 0.5, 5)
    assert record.key == record.job.key
    assert record.details == {"k": 1, "skipped_images": {"test": 2}}
    assert record.cost.device == "cpu"
    assert {"load_data", "load_model", "fit", "total"} == set(record.cost.seconds)
    assert record.cost.peak_memory_mib
    assert record.cost.images_per_second
    assert set(record.made_with.versions) == {"transferbench", "torch", "timm", "scikit-learn"}
    assert record.made_with.command == "transferbench evaluate --all"
    kept = np.load(fresh_cache / "predictions" / f"{record.predictions}.npy")
    assert kept.tolist() == [0, 1, 2, 3, 4]


def test_each_record_is_there_before_the_next_job_begins(here: Path) -> None:
    jobs = []
    seen: list[int] = []
    protocol = FakeProtocol(during=lambda: seen.append(sum(j.path.exists() for j in jobs)))
    task = make_task("linear", protocol)
    jobs += make_jobs([make_entrant("a")], [make_column("x"), make_column("y")], [task], [0, 1])
    Session("cpu").run(jobs)
    assert seen == [0, 1, 2, 3]


def test_models_and_sets_are_loaded_once(here: Path) -> None:
    references = [FakeReference("a"), FakeReference("b")]
    columns = [make_column("x"), make_column("y")]
    jobs = make_jobs(
        [make_entrant(r.name, r) for r in references],
        columns,
        [make_task("linear"), make_task("knn")],
        [0],
    )
    Session("cpu").run(jobs)
    assert [len(r.loads) for r in references] == [1, 1]
    assert [c.source.loads for c in columns] == [1, 1]  # type: ignore[union-attr]


def test_a_job_that_raises_becomes_a_failed_record_and_the_rest_runs(here: Path) -> None:
    broken = make_task("broken", FakeProtocol(ZeroDivisionError("in\n/usr/lib/x.py")))
    jobs = make_jobs([make_entrant("a")], [make_column("x")], [broken, make_task("linear")], [0])
    failed, fine = Session("cpu").run(jobs)
    assert failed.failed_now
    assert failed.state == "failed"
    assert (fine.state, fine.failed_now) == ("fresh", False)
    record = read(failed.path).record
    assert record is not None
    assert record.details["error"] == "ZeroDivisionError: in x.py"
    assert any("conftest.py" in line and "in run" in line for line in record.details["trace"])
    assert not any(line.startswith("/") for line in record.details["trace"])


def test_a_failure_leaves_the_number_measured_before(here: Path) -> None:
    entrant, column = make_entrant("a"), make_column("x")
    (job,) = make_jobs([entrant], [column], [make_task()], [0])
    write(job.path, make_record(0.5))
    broken = make_task("linear", FakeProtocol(ValueError("no"), version=2))
    (done,) = Session("cpu").run(make_jobs([entrant], [column], [broken], [0]))
    assert done.failed_now
    assert done.state == "stale"
    assert read(job.path).record == make_record(0.5)


def test_a_value_that_is_no_number_is_a_failure(here: Path) -> None:
    task = make_task("linear", FakeProtocol(float("nan")))
    (done,) = Session("cpu").run(make_jobs([make_entrant("a")], [make_column("x")], [task], [0]))
    assert done.state == "failed"


def test_bad_input_fails_its_jobs_once_loaded_or_is_raised_where_named(here: Path) -> None:
    card = make_card("x")
    source = FakeSource("x", card, error=UserError("x/3.png is corrupt"))
    column = Column("x", source, card, "f")  # type: ignore[arg-type]
    models = [make_entrant("a"), make_entrant("b")]
    jobs = make_jobs(models, [column], [make_task()], [0])
    begun: list[int] = []
    strict = Session("cpu", strict=Strictness(data=True), before_record=lambda: begun.append(1))
    with pytest.raises(UserError, match="corrupt"):
        strict.run(jobs)
    assert list(here.iterdir()) == []
    assert begun == []
    done = Session("cpu", strict=Strictness(model=True)).run(jobs)
    assert [job.reason for job in done] == ["x/3.png is corrupt"] * 2
    assert source.loads == 2
    record = read(done[0].path).record
    assert record is not None
    assert record.details == {"error": "x/3.png is corrupt"}


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_that_does_not_load(here: Path, strict: bool) -> None:
    reference = FakeReference("a", load_error=UserError("the weights have other shapes"))
    entrant = make_entrant("a", reference)
    jobs = make_jobs([entrant], [make_column("x"), make_column("y")], [make_task()], [0])
    session = Session("cpu", strict=Strictness(model=strict))
    if strict:
        with pytest.raises(UserError, match="other shapes"):
            session.run(jobs)
        assert list(here.iterdir()) == []
    else:
        assert [job.state for job in session.run(jobs)] == ["failed", "failed"]
        assert len(reference.loads) == 1


def test_what_vanishes_after_planning_is_missing_not_failed(here: Path) -> None:
    reference = FakeReference("a", load_error=NotAtHand("the run is gone", "pretrain a"))
    jobs = make_jobs([make_entrant("a", reference)], [make_column("x")], [make_task()], [0])
    (done,) = Session("cpu").run(jobs)
    assert (done.state, done.command, done.failed_now) == ("missing", "pretrain a", False)
    assert not done.path.exists()


def test_a_job_that_another_process_has_done_meanwhile_is_not_run(here: Path) -> None:
    protocol = FakeProtocol()
    jobs = make_jobs([make_entrant("a")], [make_column("x")], [make_task("l", protocol)], [0])
    assert jobs[0].description is not None
    write(jobs[0].path, make_record(0.75, jobs[0].description))
    (done,) = Session("cpu").run(jobs)
    assert done.plain()["value"] == 0.75
    assert protocol.calls == []


def test_an_interrupt_between_jobs_keeps_what_is_done(here: Path) -> None:
    protocol = FakeProtocol()
    jobs = make_jobs([make_entrant("a")], [make_column("x")], [make_task("l", protocol)], [0, 1])

    def interrupt() -> None:
        if len(protocol.calls) == 2:
            raise KeyboardInterrupt

    protocol.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        Session("cpu").run(jobs)
    assert [job.path.exists() for job in jobs] == [True, False]


def test_a_read_only_folder_is_told_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = FakeProtocol()
    jobs = make_jobs([make_entrant("a")], [make_column("x")], [make_task("l", protocol)], [0])
    (here / "leaderboards").mkdir()
    # Permissions bind root no more than the tests may run as root; the question is what counts.
    monkeypatch.setattr(evaluation.os, "access", lambda path, mode: mode != os.W_OK | os.X_OK)
    with pytest.raises(UserError, match="read-only"):
        Session("cpu").run(jobs)
    assert protocol.calls == []
    assert list((here / "leaderboards").iterdir()) == []


def test_a_file_in_the_way_is_told(here: Path) -> None:
    (here / "leaderboards").write_text("")
    with pytest.raises(UserError, match="leaderboards is not a folder"):
        check_writable(Path("leaderboards/local/records"))
