"""The cache loses time, never results: whatever is cut short, or does not fit on the disk."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import write_parquet
from tests.end_to_end.mini import Shell
from transferbench.cli import main
from transferbench.leaderboard.predictions import kept_predictions

LINE = (
    "evaluate --model random:resnet10t@32 --dataset folder:images --dataset folder:rows "
    "--protocol knn --quiet"
)


@pytest.fixture
def rows(work: Path) -> None:
    """A set of parquet files beside the images in class folders."""
    write_parquet(work / "rows" / "train.parquet", [0, 1] * 4, seed=1)
    write_parquet(work / "rows" / "test.parquet", [0, 1], seed=2)


def records() -> dict[str, Any]:
    """What was recorded, without what it cost."""
    found = {}
    for path in sorted(Path("leaderboards/local/records").rglob("*.json")):
        found[path.as_posix()] = json.loads(path.read_text())
        found[path.as_posix()].pop("cost")
    return found


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: bytes(len(data))],
    ids=["half", "zeros"],
)
@pytest.mark.usefixtures("rows")
def test_no_damaged_file_of_the_cache_is_believed(
    shell: Shell, work: Path, fresh_cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    shell(LINE)
    whole = records()
    assert len(whole) == 2
    files = [path for path in fresh_cache.rglob("*") if path.is_file()]
    kinds = {path.relative_to(fresh_cache).parts[0] for path in files}
    assert kinds >= {"digests", "contents", "surveys", "pixels", "features", "predictions"}
    for path in files:
        path.write_bytes(damage(path.read_bytes()))
    shutil.rmtree("leaderboards/local/records")
    shell(LINE)
    assert records() == whole
    assert all(kept_predictions(record["predictions"]) is not None for record in whole.values())


@pytest.mark.usefixtures("rows")
def test_a_disk_that_is_full_at_any_moment_records_nothing_untrue(
    shell: Shell, work: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write of an evaluation fails in its turn; the next run goes on and is the same."""
    line = LINE.replace("--dataset folder:images ", "")
    shell(line)
    whole = records()
    real, writes = os.fsync, [0]

    def full(descriptor: int) -> None:
        writes[0] += 1
        if writes[0] == failing:
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    failing = 0
    monkeypatch.setattr(os, "fsync", full)
    while True:
        failing += 1
        writes[0] = 0
        shutil.rmtree(fresh_cache)
        shutil.rmtree("leaderboards/local", ignore_errors=True)
        code = main(shlex.split(line))
        said = shell.capsys.readouterr().err
        if writes[0] < failing:
            break
        assert code in (1, 2)
        assert "No space left on device" in said
        assert said.count("\n") == 1
        told = records()
        assert all(record["kind"] == "failed" for record in told.values())
        assert not [*work.rglob("*.tmp"), *fresh_cache.rglob("*.tmp")]
        shell(line + " --retry-failed")
        assert records() == whole
    assert failing > 8
    assert records() == whole


@pytest.mark.usefixtures("rows")
def test_cached_features_are_used_without_loading_a_network(
    shell: Shell, work: Path, fresh_cache: Path
) -> None:
    shell(LINE)
    whole = records()
    shutil.rmtree("leaderboards/local/records")
    code = (
        "import shlex, sys; from transferbench.cli import main; code = main(sys.argv[1:]); "
        "heavy = ('torch', 'timm', 'sklearn', 'pandas'); "
        "print(code, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *shlex.split(LINE), "--device", "cpu"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"
    again = records()
    assert again.keys() == whole.keys()
    for path, record in again.items():
        assert record["predictions"] == whole[path]["predictions"]
        assert record["details"]["backbone"] == {"pooling": "avg"}
