"""The log of a run: one JSON line every few steps and every epoch, none of them twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from transferbench.errors import UserError
from transferbench.storage import write_atomic

Line = dict[str, Any]


def read_log(path: Path) -> list[Line]:
    """Return the lines of a log; a last line torn by a kill is left out.

    Every line has "kind" ("steps", "epoch" or "warning"), "step" (optimizer steps done) and
    "epoch".
    """
    lines: list[Line] = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    for row in text.splitlines():
        try:
            line = json.loads(row)
        except ValueError:
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        lines.append(line)
    return lines


class Log:
    """Appends lines to a file.

    Parameters
    ----------
    path : Path
    step : int
        Optimizer steps done at the checkpoint from which the run goes on: later lines, written by
        a process that was killed, are dropped, because those steps will be done again.

    Raises
    ------
    UserError
        If it cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_log(path) if line["step"] <= step] if step else []
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._path = path
        with _writing(path):
            self._file = path.open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        """Append one line, at once visible to who follows the file.

        Raises
        ------
        UserError
            If the disk is full.
        """
        with _writing(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def settle(self) -> None:
        """Bring what was written to the disk, as a checkpoint that counts on it is about to be.

        Raises
        ------
        UserError
            If the disk is full.
        """
        with _writing(self._path):
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # Closing tries again to write a line that failed, and so fails again.
        with suppress(OSError) if error else _writing(self._path):
            self._file.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
