"""The log of a run: where it goes on, and what a disk that takes no more gets said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transferbench.errors import UserError
from transferbench.pretrain.log import Log, read_log

FULL = Path("/dev/full")
LINE = {"kind": "steps", "step": 1, "epoch": 0}


@pytest.fixture
def full_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    """A log on a disk that filled up right after the log was opened."""
    if not FULL.exists():
        pytest.skip("only Linux has a device that is always full")
    really_open = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda _, *args, **given: really_open(FULL, *args, **given))
        return Log(tmp_path / "log.jsonl", 0)


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path, 0) as log:
        for step in (1, 2, 3):
            log.write({**LINE, "step": step})
    with Log(path, 2) as log:
        log.write({**LINE, "step": 3, "epoch": 1})
    assert [(line["step"], line["epoch"]) for line in read_log(path)] == [(1, 0), (2, 0), (3, 1)]


def test_a_full_disk_is_one_line_although_closing_fails_too(full_log: Log) -> None:
    said = r"cannot write \S*log.jsonl: No space left on device"
    with pytest.raises(UserError, match=said), full_log:
        full_log.write(LINE)


def test_a_full_disk_met_while_settling_is_one_line(full_log: Log) -> None:
    with full_log, pytest.raises(UserError, match=r"cannot write \S*log.jsonl: "):
        full_log.settle()


def test_a_log_that_cannot_be_opened_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot write \S*log.jsonl: Permission denied"):
        Log(tmp_path / "log.jsonl", 0)
