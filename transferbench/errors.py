"""The one error type that users can cause, and nearest-name suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. Its message is one sentence: what is wrong, where, and what to do instead.

    The command line prints it as one line and exits with 2. Any other exception is a bug.
    """


class NotAtHand(UserError):
    """A run, a weights file or a data set that is known but absent.

    Parameters
    ----------
    reason : str
        One sentence.
    command : str
        The command that makes or fetches it; empty if there is none.
    """

    def __init__(self, reason: str, command: str = "") -> None:
        super().__init__(f"{reason} (make it with: {command})" if command else reason)
        self.reason = reason
        self.command = command


def nearest(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """Return up to `limit` of `names` that resemble `name`, best first."""
    lowered = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower(), lowered, n=limit, cutoff=0.5)
    return [lowered[match] for match in found]


def unknown(what: str, name: str, names: Iterable[str], where: str = "") -> UserError:
    """Describe an unknown name with its nearest valid names, or all of them if none is near.

    >>> str(unknown("method", "swaw", ["byol", "swav"]))
    "unknown method 'swaw'; did you mean 'swav'?"
    """
    names = sorted(names)
    near = nearest(name, names)
    place = f" in {where}" if where else ""
    if near:
        hint = "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    elif names:
        hint = "valid: " + ", ".join(names)
    else:
        hint = "there are none"
    return UserError(f"unknown {what} '{name}'{place}; {hint}")
