from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.mini import make_images
from tests.leaderboard.conftest import (
    FakeDataset,
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
from transferbench.leaderboard.evaluation import Session, Strictness, check_writable
from transferbench.leaderboard.jobs import Column, Job, columns
from transferbench.leaderboard.record import read, write


def test_a_job_becomes_a_record_with_all_that_it_should_tell(here: Path, fresh_cache: Path) -> None:
    jobs = make_jobs([make_entrant("a")], [make_column("x", skipped=2)], [make_task()], [0])
    (done,) = Session("cpu", command="transferbench evaluate --all").run(jobs)
    assert done.state == "fresh"
    record = read(done.path).record
    assert record is not None
    assert (record.kind, record.metric, record.value, record.n) == ("measured", "top1", 0.5, 5)
    assert record.key == record.job.key
    assert record.details == {
        "k": 1,
        "backbone": {"pooling": "avg"},
        "skipped_images": {"test": 2},
    }
    assert record.cost.device == "cpu"
    assert {"load_data", "load_model", "fit", "total"} == set(record.cost.seconds)
    assert record.cost.peak_memory_mib
    assert record.cost.images_per_second
    assert set(record.made_with.versions) == {"transferbench", "torch", "timm", "scikit-learn"}
    assert record.made_with.command == "transferbench evaluate --all"
    kept = np.load(fresh_cache / "predictions" / f"{record.predictions}.npy")
    assert kept.tolist() == [0, 1, 2, 3, 4]


def test_each_record_is_there_before_the_next_job_begins(here: Path) -> None:
    jobs: list[Job] = []
    seen: list[int] = []
    protocol = FakeProtocol(during=lambda: seen.append(sum(j.path.exists() for j in jobs)))
    task = make_task("linear", protocol)
    jobs += make_jobs([make_entrant("a")], [make_column("x"), make_column("y")], [task], [0, 1])
    Session("cpu").run(jobs)
    assert seen == [0, 1, 2, 3]


def test_models_and_sets_are_loaded_once(here: Path) -> None:
    references = [FakeReference("a", "da"), FakeReference("b", "db")]
    sets = [make_column("x"), make_column("y")]
    jobs = make_jobs(
        [make_entrant(r.name, r) for r in references],
        sets,
        [make_task("linear"), make_task("knn")],
        [0],
    )
    Session("cpu").run(jobs)
    assert [len(r.loads) for r in references] == [1, 1]
    assert [c.source.loads for c in sets] == [1, 1]  # type: ignore[union-attr]


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
    good = make_column("y")
    models = [make_entrant("a"), make_entrant("b")]
    protocol = FakeProtocol()
    jobs = make_jobs(models, [good, column], [make_task("linear", protocol)], [0])
    begun: list[int] = []
    strict = Session("cpu", strict=Strictness(data=True), before_record=lambda: begun.append(1))
    with pytest.raises(UserError, match="corrupt"):
        strict.run(jobs)
    assert list(here.iterdir()) == []
    assert begun == []
    assert protocol.calls == []
    done = Session("cpu", strict=Strictness(model=True), load_ahead=True).run(jobs)
    assert [job.state for job in done] == ["fresh", "failed"] * 2
    assert [job.reason for job in done] == ["", "x/3.png is corrupt"] * 2
    assert source.loads == 2
    record = read(done[1].path).record
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


def test_two_sets_of_one_short_name_have_each_its_own_number(here: Path) -> None:
    """As on the local board: the second takes the first's place, with its own key and number."""
    values = {"one": 0.25, "two": 0.75}
    task = make_task("linear", FakeProtocol(lambda _, dataset: values[dataset.fingerprint]))
    twins = [make_column("x", fingerprint=name) for name in values]
    jobs = make_jobs([make_entrant("a")], twins, [task], [0])
    done = Session("cpu").run(jobs)
    assert [job.record and job.record.value for job in done] == [0.25, 0.75]
    assert [job.record and job.record.job.dataset.fingerprint for job in done] == ["one", "two"]


def test_two_models_of_one_short_name_have_each_its_own_number(here: Path) -> None:
    values = {"one": 0.25, "two": 0.75}
    task = make_task("linear", FakeProtocol(lambda backbone, _: values[backbone.digest]))
    twins = [make_entrant("a", FakeReference("a", name)) for name in values]
    done = Session("cpu").run(make_jobs(twins, [make_column("x")], [task], [0]))
    assert [job.record and job.record.value for job in done] == [0.25, 0.75]


def test_what_changes_between_planning_and_loading_fails_its_jobs(here: Path) -> None:
    reference = FakeReference("a", digest="before")
    sets = [make_column("x"), make_column("y")]
    jobs = make_jobs([make_entrant("a", reference)], sets, [make_task()], [0])
    source = sets[0].source
    assert source is not None
    source.fingerprint = "after"  # type: ignore[attr-defined]
    changed, fine = Session("cpu", strict=Strictness(model=True)).run(jobs)
    assert (changed.state, fine.state) == ("failed", "fresh")
    assert changed.reason == "the data set 'x' changed while the evaluation ran; run again"
    reference.digest = "after"
    jobs = make_jobs([make_entrant("b", reference)], [sets[1]], [make_task()], [0])
    reference.digest = "later"
    (changed,) = Session("cpu").run(jobs)
    assert changed.reason == "the model 'b' changed while the evaluation ran; run again"


def test_a_folder_that_changes_after_planning_is_noticed(here: Path, fresh_cache: Path) -> None:
    """A source remembers its files' content; what is loaded is looked at anew."""
    folder = make_images(here / "images", train=3, test=2)
    jobs = make_jobs([make_entrant("a")], columns(["folder:images"], None), [make_task()], [0])
    next((folder / "test").rglob("*.png")).unlink()
    (done,) = Session("cpu").run(jobs)
    assert done.reason == "the data set 'images' changed while the evaluation ran; run again"


@pytest.mark.parametrize("named", [False, True])
def test_a_set_that_a_protocol_refuses_stops_nothing_but_its_job(here: Path, named: bool) -> None:
    def value(_: object, dataset: FakeDataset) -> float:
        if dataset.name == "small":
            raise UserError("the set has fewer images than k")
        return 0.5

    task = make_task("linear", FakeProtocol(value))
    sets = [make_column("small"), make_column("x")]
    jobs = make_jobs([make_entrant("a")], sets, [task], [0])
    session = Session("cpu", strict=Strictness(model=True), load_ahead=named)
    assert [job.state for job in session.run(jobs)] == ["failed", "fresh"]
    alone = make_jobs([make_entrant("b")], sets[:1], [task], [0])
    if named:
        with pytest.raises(UserError, match="fewer images"):
            Session("cpu", strict=Strictness(data=True)).run(alone)
        assert not alone[0].path.exists()
    else:
        assert [job.state for job in Session("cpu").run(alone)] == ["failed"]


def test_what_was_loaded_ahead_counts_as_time_of_the_first_job(here: Path) -> None:
    column = make_column("x")
    jobs = make_jobs([make_entrant("a")], [column], [make_task("l"), make_task("k")], [0])
    session = Session("cpu", load_ahead=True)
    load = column.source.load  # type: ignore[union-attr]
    clock = iter(range(0, 10_000, 1))

    def slow(**options: object) -> object:
        for _ in range(100):
            next(clock)
        return load(**options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column.source, "load", slow)
        patch.setattr(time, "monotonic", lambda: float(next(clock)))
        first, second = session.run(jobs)
    assert first.record is not None
    assert second.record is not None
    assert first.record.cost.seconds["load_data"] >= 100
    assert first.record.cost.seconds["total"] >= 100
    assert second.record.cost.seconds["total"] < 100


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
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK | os.X_OK)
    with pytest.raises(UserError, match="read-only"):
        Session("cpu").run(jobs)
    assert protocol.calls == []
    assert list((here / "leaderboards").iterdir()) == []


def test_a_file_in_the_way_is_told(here: Path) -> None:
    (here / "leaderboards").write_text("")
    with pytest.raises(UserError, match="leaderboards is not a folder"):
        check_writable(Path("leaderboards/local/records"))
