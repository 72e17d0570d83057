"""Progress of epochs, extraction and jobs: rich bars on a terminal, plain lines elsewhere.

A `Progress` is handed down from the command line to whatever takes long. All output goes to
standard error, so that `--json` owns standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Style = Literal["auto", "plain", "quiet"]


class Task:
    """One running bar; `advance` may be called as often as convenient."""

    def __init__(self, owner: Progress, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.note = ""
        self._owner = owner
        self._started = self._last_line = time.monotonic()
        self._bar: TaskID | None = None

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more units done; `note` (e.g. "loss 5.31") stands beside the bar."""
        self.done += amount
        self.note = note or self.note
        self._owner._show(self)

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

    @property
    def speed(self) -> str:
        """The rate as text, per minute where it is below one a second: "1239/s", "4.5/min"."""
        return f"{self.rate:.0f}/s" if self.rate >= 1 else f"{60 * self.rate:.1f}/min"

    def line(self) -> str:
        """The task as one plain line: share, rate, time left."""
        left = (self.total - self.done) / self.rate if self.done else float("inf")
        when = f", {left:.0f} s left" if 0 < left < float("inf") else ""
        note = f"  {self.note}" if self.note else ""
        return f"{self.title}: {self.done}/{self.total} {self.unit}, {self.speed}{when}{note}"


class Progress:
    """Shows tasks and messages in one of three styles.

    Parameters
    ----------
    style : {"auto", "plain", "quiet"}
        "auto" draws bars if standard error is a terminal, else prints a line at the start of a
        task's second ten and every ten seconds after; "quiet" shows nothing.
    """

    interval = 10.0

    def __init__(self, style: Style = "auto") -> None:
        self.style: Style = style
        if style == "auto" and not sys.stderr.isatty():
            self.style = "plain"
        self._rich: RichProgress | None = None
        self._depth = 0

    def say(self, text: str) -> None:
        """Print one line of information, above any bars."""
        if self.style == "quiet":
            return
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "") -> Iterator[Task]:
        """Open a bar of `total` units; it closes with the block. Blocks nest."""
        task = Task(self, title, total, unit)
        if self.style != "auto":
            yield task
            return
        rich = self._open()
        task._bar = rich.add_task(title, total=total, unit=unit, note="", rate="")
        try:
            yield task
        finally:
            rich.remove_task(task._bar)
            self._close()

    def _open(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        if self._rich is None:
            self._rich = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._rich.start()
        self._depth += 1
        return self._rich

    def _close(self) -> None:
        self._depth -= 1
        if self._depth == 0 and self._rich is not None:
            self._rich.stop()
            self._rich = None

    def _show(self, task: Task) -> None:
        if self._rich is not None and task._bar is not None:
            self._rich.update(task._bar, completed=task.done, note=task.note, rate=task.speed)
        elif self.style == "plain":
            now = time.monotonic()
            if now - task._last_line >= self.interval:
                task._last_line = now
                print(task.line(), file=sys.stderr, flush=True)


SILENT = Progress("quiet")
