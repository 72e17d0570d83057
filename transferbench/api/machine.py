"""What depends on the machine: devices, where data lie."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from transferbench.errors import UserError

RUNS = "runs"
"""Where run folders are, unless said otherwise."""


GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
"""Without any of these Linux has no GPU that torch could use; looking for them needs no torch."""


def choose_device(asked: str | None) -> str:
    """Return the device to use: the one asked for, else CUDA where present, else the CPU.

    Raises
    ------
    UserError
        If it is no device, or not on this machine.
    """
    if asked is not None:
        check_device(asked)
        if asked == "cpu":
            return asked
    if asked is None and sys.platform == "linux" and not any(map(os.path.exists, GPU_FILES)):
        return "cpu"
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = asked.partition(":")
    if kind == "mps":
        there = 1 if torch.backends.mps.is_available() else 0
    else:
        there = torch.cuda.device_count()
    if int(number or 0) >= there:
        raise UserError(f"the device '{asked}' is not on this machine")
    return asked


def check_device(asked: str | None) -> None:
    """Check a device's form without importing torch.

    Raises
    ------
    UserError
        If it is not of the form "cpu", "cuda", "cuda:N" or "mps".
    """
    if asked is not None and not re.fullmatch(r"cpu|cuda(:\d+)?|mps", asked):
        raise UserError(f"'{asked}' is no device; valid: cpu, cuda, cuda:N, mps")


def find_root(given: str | Path | None) -> Path | None:
    """Return the folder whose sub-folders are data sets: as given, else $TRANSFERBENCH_DATA."""
    text = given or os.environ.get("TRANSFERBENCH_DATA")
    return Path(text) if text else None
