"""Processes that start at once: forked from one that has imported what takes seconds to import.

Each is a process of its own all the same, with its own memory, files and end.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

HEAVY = (
    "torch",
    "torch.distributed",
    "timm",
    "sklearn.datasets",
    "sklearn.linear_model",
    "scipy.stats",
    "safetensors.torch",
    "pandas",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)


def context() -> ForkServerContext:
    """Return what makes such processes; the server starts with the first of them."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(HEAVY))
    return forks


class Done(NamedTuple):
    """How a process ended (negative: by which signal), and what it wrote."""

    returncode: int | None
    stdout: str
    stderr: str


class Forked:
    """A transferbench command in a process of its own.

    Parameters
    ----------
    arguments : str
        Of the command line.
    cwd : Path
        Where it runs; what it writes goes to a file beside this folder.
    before : callable, optional
        Importable; called in the process before the command.
    """

    def __init__(
        self, *arguments: str | Path, cwd: Path, before: Callable[[], None] | None = None
    ) -> None:
        self._out = cwd.with_name(f"{cwd.name}-{time.monotonic_ns()}.out")
        self._err = self._out.with_suffix(".err")
        told = (list(map(str, arguments)), cwd, dict(os.environ), self._out, self._err, before)
        self.process: ForkServerProcess = context().Process(target=_command, args=told)
        self.process.start()

    def wait(self) -> Done:
        """Wait for its end."""
        self.process.join()
        return Done(self.process.exitcode, self._out.read_text(), self._err.read_text())


def _command(
    arguments: list[str],
    cwd: Path,
    environment: dict[str, str],
    out: Path,
    err: Path,
    before: Callable[[], None] | None,
) -> None:
    for path, number in ((out, 1), (err, 2)):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    # The server's are those of the moment it started.
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["transferbench", *arguments]

    import torch

    from transferbench.cli import main

    torch.set_num_threads(1)
    if before is not None:
        before()
    sys.exit(main())


def forked(*arguments: Any, cwd: Path, before: Callable[[], None] | None = None) -> Done:
    """Run a command to its end in such a process."""
    return Forked(*arguments, cwd=cwd, before=before).wait()
