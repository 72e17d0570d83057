"""How long a user waits for the commands that do nothing: process start to end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.end_to_end.mini import make_workplace

CODE = "import sys; from transferbench.cli import main; sys.exit(main())"


def _seconds(arguments: list[str], cwd: Path, *, repeats: int = 5) -> list[float]:
    """Wall-clock seconds of each run, shortest first."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", CODE, *arguments], cwd=cwd, check=True, capture_output=True
        )
        taken.append(time.perf_counter() - started)
    return sorted(taken)


def main() -> None:
    """Print the fastest and the median time of each command beside its target."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("TRANSFERBENCH_CACHE", f"{scratch}/cache")
        work = make_workplace(Path(scratch) / "work")
        board = ["evaluate", "--all", "--board", "mini"]
        local = ["evaluate", "--all", "--dataset", "digits", "--protocol", "knn"]
        for arguments in (["pretrain", "--all", "--board", "mini"], board, local):
            _seconds(arguments, work, repeats=1)
        rows = [
            (["--help"], "0.3"),
            (["evaluate", "--help"], "0.3"),
            ([*board], "2.0"),
            ([*local], "2.0"),
            (["leaderboard", "--board", "mini"], ""),
        ]
        print(f"{'command':<60}{'fastest':>9}{'median':>9}{'target':>9}")
        for arguments, target in rows:
            taken = _seconds(arguments, work)
            line = "transferbench " + " ".join(arguments)
            median = taken[len(taken) // 2]
            print(f"{line:<60}{taken[0]:>7.2f} s{median:>7.2f} s{target and f'{target} s':>9}")
