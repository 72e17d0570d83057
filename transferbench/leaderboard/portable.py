"""Texts that may be committed: no absolute path of the machine they were made on."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def portable(text: str) -> str:
    """Replace each absolute path in a text: relative to here where it lies below, else its name.

    >>> portable("file:/data/net.safetensors@resnet50")
    'file:net.safetensors@resnet50'
    """
    return re.sub(r"(^|[\s'\"=:(,])(/[^\s'\",;()@:]*)", _shorten, text)


def _shorten(match: re.Match[str]) -> str:
    before, text = match.groups()
    # "//" follows the colon of a URL.
    if text.startswith("//"):
        return match.group()
    path = Path(text)
    here = Path.cwd()
    for candidate in (path, path.resolve()):
        if candidate.is_relative_to(here) and candidate != here:
            return before + candidate.relative_to(here).as_posix()
    return before + (path.name or text)


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Return a command line as a shell would take it, without absolute paths.

    Parameters
    ----------
    arguments : sequence of str, optional
        After the program's name; by default those of this process if it is the command line.
    """
    if arguments is None:
        program = Path(sys.argv[0]).name if sys.argv else ""
        if program not in ("transferbench", "__main__.py"):
            return "python"
        arguments = sys.argv[1:]
    return shlex.join(["transferbench", *(portable(a) for a in arguments)])
