"""How a command ends when it does not simply finish: one line on standard error, a code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from transferbench.errors import nearest


def complain(text: str) -> None:
    """Print one line to standard error."""
    print(" ".join(text.split()), file=sys.stderr)


def usage_sentence(error: Any) -> str:
    """The parser's complaint in our words, with the nearest valid option."""
    name = getattr(error, "option_name", None)
    command = getattr(getattr(error, "ctx", None), "command", None)
    if name and "No such option" in str(error.message) and command is not None:
        valid = ["--help", *(opt for p in command.params for opt in p.opts if opt[:2] == "--")]
        near = nearest(name, valid)
        hint = f"did you mean '{near[0]}'?" if near else "valid: " + ", ".join(sorted(valid))
        return f"unknown option '{name}'; {hint}"
    said = str(error.format_message()).strip().rstrip(".")
    return said[:1].lower() + said[1:]


class Warnings:
    """Shows our own warnings, one line each; those of libraries are for developers.

    What data cards hold beyond the schema is told at the end, in one line for all of them.
    """

    def __init__(self) -> None:
        self._cards: dict[str, set[str]] = {}

    def show(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        """Take the place of `warnings.showwarning`."""
        if not category.__module__.startswith("transferbench."):
            return
        keys, name = getattr(message, "keys", None), getattr(message, "name", None)
        if isinstance(keys, list) and isinstance(name, str):
            self._cards.setdefault(name, set()).update(keys)
            return
        complain(f"warning: {message}")

    def tell(self) -> None:
        """Show what was kept for the end."""
        if not self._cards:
            return
        keys = ", ".join(sorted(set().union(*self._cards.values())))
        names = sorted(self._cards)
        which = f"{names[0]}/dataset.toml" if len(names) == 1 else f"{len(names)} dataset.toml"
        more = "" if len(names) == 1 else f" ({', '.join(names)})"
        complain(f"warning: {which}: kept but not read: {keys}{more}")
        self._cards.clear()


@contextmanager
def terminated_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what is half-done is cleaned up."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
