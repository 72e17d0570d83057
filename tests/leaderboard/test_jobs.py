from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.leaderboard.conftest import (
    FakeParameters,
    FakeProtocol,
    FakeReference,
    make_column,
    make_entrant,
    make_jobs,
    make_record,
    make_task,
)
from transferbench.data.dataset import Card
from transferbench.errors import NotAtHand, UserError
from transferbench.leaderboard.board import Board, BoardFile, BoardProtocol
from transferbench.leaderboard.jobs import (
    Column,
    Job,
    applies,
    columns,
    plan,
    shard,
    to_run,
)
from transferbench.leaderboard.portable import command_line, portable
from transferbench.leaderboard.record import record_path, write
from transferbench.leaderboard.tasks import tasks
from transferbench.protocols.variants import VARIANTS


def _one(state_of: list[Job]) -> Job:
    (job,) = state_of
    return job


def test_jobs_are_all_that_apply_model_by_model(here: Path) -> None:
    jobs = make_jobs(
        [make_entrant("a"), make_entrant("b")],
        [make_column("x"), make_column("many", task="multilabel")],
        [make_task("linear"), make_task("knn")],
        [0, 1],
    )
    assert [(j.entrant.name, j.column.name, j.task.name, j.seed) for j in jobs] == [
        (model, "x", protocol, seed)
        for model in "ab"
        for protocol in ("linear", "knn")
        for seed in (0, 1)
    ]
    assert {job.state for job in jobs} == {"missing"}
    # Linear and knn are stand-ins for one protocol here, so their keys agree pairwise.
    assert len({job.description.key for job in jobs if job.description}) == 4
    assert jobs[0].path == Path("leaderboards/test/records/a/x/linear-0.json")


def test_states_follow_the_record_on_disk(here: Path) -> None:
    entrant, column, task = make_entrant("a"), make_column("x"), make_task()
    job = _one(make_jobs([entrant], [column], [task], [0]))
    assert job.description is not None
    record = make_record(0.25, job.description)

    write(job.path, record)
    fresh = _one(make_jobs([entrant], [column], [task], [0]))
    assert fresh.state == "fresh"
    assert fresh.plain() == {
        "model": "a", "dataset": "x", "protocol": "linear", "seed": 0, "state": "fresh",
        "metric": "top1", "value": 0.25, "standard_error": 0.01, "n": 100,
        "record": "leaderboards/test/records/a/x/linear-0.json",
    }  # fmt: skip
    for changed in (
        make_jobs([make_entrant("a", FakeReference("a", "new"))], [column], [task], [0]),
        make_jobs([entrant], [make_column("x", fingerprint="new")], [task], [0]),
        make_jobs([entrant], [column], [make_task("linear", FakeProtocol(version=2))], [0]),
    ):
        assert _one(changed).state == "stale"
    job.path.write_text("{")
    unreadable = _one(make_jobs([entrant], [column], [task], [0]))
    assert unreadable.state == "unreadable"
    assert "move the file away" in unreadable.reason
    assert unreadable.plain()["value"] is None
    job.path.unlink()
    write(job.path, make_record(None, job.description))
    failed = _one(make_jobs([entrant], [column], [task], [0]))
    assert (failed.state, failed.reason) == ("failed", "ValueError: broken")
    assert to_run([failed], retry_failed=False) == []
    assert to_run([failed], retry_failed=True) == [failed]
    assert to_run([unreadable, fresh], retry_failed=True) == []


def test_what_is_not_at_hand_is_missing_with_its_command_and_keeps_its_record(here: Path) -> None:
    entrant, column, task = make_entrant("a"), make_column("x"), make_task()
    job = _one(make_jobs([entrant], [column], [task], [0]))
    assert job.description is not None
    write(job.path, make_record(0.25, job.description))
    gone = make_entrant("a", FakeReference("a", digest=""))
    job = _one(make_jobs([gone], [column], [task], [0]))
    assert (job.state, job.reason, job.command) == (
        "missing", "there is no run a", "pretrain a",
    )  # fmt: skip
    assert job.plain()["value"] == 0.25
    assert to_run([job], retry_failed=True) == []
    with pytest.raises(NotAtHand):
        make_jobs([gone], [column], [task], [0], strict=True)
    absent = Column("x", reason="not fetched", command="fetch it")
    job = _one(make_jobs([entrant], [absent], [task], [0]))
    assert (job.state, job.reason, job.command) == ("missing", "not fetched", "fetch it")
    job.path.write_text("{")
    assert _one(make_jobs([gone], [column], [task], [0])).state == "unreadable"


def test_records_beside_a_packaged_board_are_read_and_ours_come_first(here: Path) -> None:
    package = here / "package" / "test"
    board = Board("test", package / "board.toml", BoardFile())
    entrant, column, task = make_entrant("a"), make_column("x"), make_task()
    job = _one(plan(board, [entrant], [column], [task], [0]))
    assert job.description is not None
    write(record_path(package, "a", "x", "linear", 0), make_record(0.25, job.description))
    job = _one(plan(board, [entrant], [column], [task], [0]))
    assert (job.state, job.plain()["value"]) == ("fresh", 0.25)
    assert job.plain()["record"] == f"{package}/records/a/x/linear-0.json"
    write(job.path, make_record(0.75, job.description))
    ours = _one(plan(board, [entrant], [column], [task], [0])).plain()
    assert (ours["value"], ours["record"]) == (0.75, job.path.as_posix())


def test_shards_share_out_all_jobs_and_keep_a_model_and_set_together() -> None:
    jobs = make_jobs(
        [make_entrant(name) for name in "abc"],
        [make_column("x"), make_column("y")],
        [make_task("linear"), make_task("knn")],
        [0],
    )
    parts = [shard(jobs, f"{i}/4") for i in (1, 2, 3, 4)]
    assert sorted(id(job) for part in parts for job in part) == sorted(id(job) for job in jobs)
    homes = [{(j.entrant.name, j.column.name) for j in part} for part in parts]
    assert sum(map(len, homes)) == 6
    done = [replace(job, state="fresh") for job in jobs]
    assert [j.title for j in shard(done, "2/4")] == [j.title for j in parts[1]]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="1 <= i <= n"):
        shard([], text)


def test_protocols_and_their_parameters_are_checked() -> None:
    with pytest.raises(UserError, match="unknown protocol 'liner' in here; did you mean 'linear'"):
        tasks([BoardProtocol(name="liner")], "here")
    for parameters, said in (
        ({"kk": 3}, "kk: unknown parameter; did you mean 'k'?"),
        ({"zzz": 3}, "zzz: unknown parameter; valid: also, k"),
        ({"k": "many"}, "k: Input should be a valid integer"),
        ({"k": 0}, "k: Input should be greater than or equal to 1"),
    ):
        with pytest.raises(UserError) as caught:
            tasks([BoardProtocol(name="mine", protocol="knn", parameters=parameters)], "here")
        assert said in str(caught.value)
        assert "'mine'" in str(caught.value)
    (task,) = tasks([BoardProtocol(name="mine", protocol="knn", parameters={"k": 3})], "here")
    assert task.parameters.model_dump()["k"] == 3


def test_an_unknown_data_set_is_an_error_or_a_reason(here: Path) -> None:
    for options in ({"known": True}, {"strict": True}):
        with pytest.raises(UserError, match="unknown data set 'digitz'; did you mean 'digits'"):
            columns(["digitz"], None, **options)
    (column,) = columns(["digitz"], None)
    assert "did you mean 'digits'" in column.reason
    (column,) = columns(["drawn"], None)
    assert "no test split" in column.reason


def test_texts_for_records_hold_no_absolute_path(here: Path) -> None:
    assert portable(f"run:{here}/runs/swav") == "run:runs/swav"
    assert portable("file:/data/net.safetensors@resnet50") == "file:net.safetensors@resnet50"
    assert portable("--data-root=/data/images") == "--data-root=images"
    assert portable("cannot read '/a/b c/d.png': gone") == "cannot read 'b c/d.png': gone"
    assert portable("runs/swav and ../up/x and http://host/a/b") == (
        "runs/swav and ../up/x and http://host/a/b"
    )
    assert command_line(["evaluate", "--data-root", "/data/images", "--set", "a b"]) == (
        "transferbench evaluate --data-root images --set 'a b'"
    )


def test_a_name_of_its_own_brings_its_parameters() -> None:
    few, own, plain = tasks(
        [
            BoardProtocol(name="linear-10pct", parameters={"count": 3}),
            BoardProtocol(name="linear-10pct", protocol="linear"),
            BoardProtocol(name="linear"),
        ],
        "here",
    )
    assert (few.name, few.registered) == ("linear-10pct", "linear")
    assert few.parameters.model_dump() == plain.parameters.model_dump() | {
        "labels": 0.1,
        "count": 3,
    }
    assert own.parameters == plain.parameters


def test_every_variant_names_a_protocol_with_parameters_that_it_takes() -> None:
    found = tasks([BoardProtocol(name=name) for name in VARIANTS], "here")
    for task in found:
        assert task.parameters != task.protocol.Parameters()


def test_a_set_too_small_for_the_parameters_is_not_applicable() -> None:
    class Large(FakeParameters):
        def suit(self, card: Card) -> bool:
            return card.classes > 2

    column = make_column("digits")
    assert applies(make_task(), column)
    assert not applies(replace(make_task(), parameters=Large()), column)
