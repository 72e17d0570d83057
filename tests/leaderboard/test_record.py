from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.leaderboard.conftest import make_job_description, make_record
from transferbench.errors import UserError
from transferbench.leaderboard.record import (
    NOTHING,
    ModelPart,
    ProtocolPart,
    read,
    read_all,
    record_path,
    state_of,
    write,
)
from transferbench.storage import in_turn, write_atomic


def test_a_record_reads_back_as_written(tmp_path: Path) -> None:
    record = make_record(0.123456789012345, details={"curve": [0.1, None], "on_edge": False})
    path = record_path(tmp_path, "swav", "digits", "linear", 0)
    assert write(path, record)
    assert path == tmp_path / "records/swav/digits/linear-0.json"
    assert read(path).record == record
    plain = json.loads(path.read_text())
    assert list(plain) == [
        "schema", "kind", "key", "job", "metric", "value", "standard_error", "n", "details",
        "predictions", "cost", "made_with",
    ]  # fmt: skip
    assert plain["schema"] == 1


def test_the_key_is_made_of_what_can_change_the_number_and_nothing_else() -> None:
    job = make_job_description()
    key = job.key
    renamed = job.model_copy(
        update={
            "model": job.model.model_copy(update={"name": "other", "reference": "run:elsewhere"}),
            "dataset": job.dataset.model_copy(update={"name": "x", "source": "folder"}),
            "protocol": job.protocol.model_copy(update={"name": "linear-paper"}),
        }
    )
    assert renamed.key == key
    changed = [
        job.model_copy(
            update={"model": ModelPart(name="swav", reference="", identity={"digest": "new"})}
        ),
        job.model_copy(update={"dataset": job.dataset.model_copy(update={"fingerprint": "other"})}),
        job.model_copy(update={"seed": 1}),
        *(
            job.model_copy(update={"protocol": job.protocol.model_copy(update=update)})
            for update in ({"protocol": "knn"}, {"version": 2}, {"parameters": {"k": 2}})
        ),
    ]
    keys = [each.key for each in changed]
    assert len({key, *keys}) == 1 + len(changed)
    assert isinstance(job.protocol, ProtocolPart)


def test_the_five_states(tmp_path: Path) -> None:
    path = tmp_path / "records" / "m" / "d" / "linear-0.json"
    record = make_record()
    assert read(path) is NOTHING
    assert state_of(read(path), record.key) == "missing"
    write(path, record)
    assert state_of(read(path), record.key) == "fresh"
    assert state_of(read(path), "another") == "stale"
    failed = make_record(None)
    write(path.with_name("knn-0.json"), failed)
    assert state_of(read(path.with_name("knn-0.json")), failed.key) == "failed"
    path.write_text("{ not json")
    assert state_of(read(path), record.key) == "unreadable"


def test_a_failure_of_other_inputs_is_stale_and_a_published_number_never_is(tmp_path: Path) -> None:
    path = tmp_path / "linear-0.json"
    write(path, make_record(None))
    assert state_of(read(path), "another") == "stale"
    write(path, make_record(0.7, kind="published", key=""))
    assert state_of(read(path), "another") == "fresh"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1, 2]",
        b"\xff\xfe\x00",
        make_record().dumps().replace('"schema": 1', '"schema": 2'),
        make_record().dumps().replace('"value": 0.5', '"value": "high"'),
        make_record().dumps().replace('"value": 0.5', '"value": null'),
        make_record().dumps().replace('"value": 0.5', '"value": NaN'),
        make_record().dumps().replace('"value": 0.5', '"value": 7.5'),
        make_record().dumps().replace('"value": 0.5', '"value": -0.1'),
        make_record().dumps().replace('"seed": 0', '"seed": 1'),
        make_record(None).dumps().replace('"seed": 0', '"seed": 1'),
        make_record().dumps().replace('"n": 100', '"n": 100, "more": 1'),
        make_record().dumps()[:-20],
    ],
)
def test_what_is_no_record_is_reported_and_left_alone(tmp_path: Path, text: str | bytes) -> None:
    path = record_path(tmp_path, "swav", "digits", "linear", 0)
    path.parent.mkdir(parents=True)
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(content)
    reading = read(path)
    assert reading.record is None
    assert str(path) in (reading.problem or "")
    assert "\n" not in (reading.problem or "")
    with pytest.raises(UserError, match="move the file away"):
        write(path, make_record())
    assert path.read_bytes() == content
    records, problems = read_all(tmp_path)
    assert not records
    assert len(problems) == 1


def test_a_failure_never_replaces_a_number(tmp_path: Path) -> None:
    path = tmp_path / "linear-0.json"
    write(path, make_record(0.5))
    assert not write(path, make_record(None))
    assert read(path).record == make_record(0.5)
    other = tmp_path / "knn-0.json"
    assert write(other, make_record(None))
    assert write(other, make_record(None, details={"error": "again"}))
    assert write(other, make_record(0.25))
    assert read(other).record == make_record(0.25)


def test_a_number_that_is_none_is_no_record() -> None:
    with pytest.raises(ValidationError, match="finite"):
        make_record().model_validate(
            {**make_record().model_dump(by_alias=True), "value": float("nan")}
        )
    with pytest.raises(ValidationError, match="no value"):
        make_record().model_validate({**make_record().model_dump(by_alias=True), "kind": "failed"})


def test_a_writer_waits_for_its_turn(tmp_path: Path) -> None:
    """Between looking at the file and replacing it, nobody else may write."""
    path = tmp_path / "linear-0.json"
    failing = threading.Thread(target=write, args=(path, make_record(None)))
    with in_turn(tmp_path):
        failing.start()
        failing.join(timeout=0.3)
        assert failing.is_alive()
        assert not path.exists()
        write_atomic(path, make_record(0.5).dumps())
    failing.join()
    assert read(path).record == make_record(0.5)


def test_the_lock_is_on_a_file_that_is_writable_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems lock nothing that is open for reading only."""
    flock, modes = fcntl.flock, []

    def watched(descriptor: int, operation: int) -> None:
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", watched)
    with in_turn(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    assert modes == [os.O_RDWR]
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(UserError, match=r"cannot lock .*\.lock: No locks available"):
        write(tmp_path / "linear-0.json", make_record(0.5))


def _write_many(folder: str, mine: int) -> None:
    for turn in range(40):
        path = record_path(Path(folder), f"m{turn % 5}", "d", "linear", mine)
        write(path, make_record(turn / 100))
        shared = record_path(Path(folder), "shared", "d", "linear", 0)
        write(shared, make_record(0.5 if mine else None))


def test_two_processes_on_one_board_lose_no_record(tmp_path: Path) -> None:
    """One process only fails on the shared job, the other only succeeds: success must stand."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(str(tmp_path), i)) for i in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    records, problems = read_all(tmp_path)
    assert not problems
    assert len(records) == 5 * 2 + 1
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json"}
    shared = read(record_path(tmp_path, "shared", "d", "linear", 0)).record
    assert shared is not None
    assert shared.kind == "measured"
