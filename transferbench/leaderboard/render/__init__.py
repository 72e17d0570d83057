"""A table as markdown, csv, latex or json, or on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transferbench.errors import unknown

if TYPE_CHECKING:
    from transferbench.leaderboard.table import Table

FORMATS = ("markdown", "csv", "latex", "json")


def text(tables: Sequence[Table], form: str, *, board: str, errors: bool = False) -> str:
    """Return tables in one of `FORMATS`, ending in a newline."""
    from transferbench.leaderboard.render import csv, json, latex, markdown

    if form == "markdown":
        return markdown.render(tables, errors=errors)
    if form == "csv":
        return csv.render(tables, errors=errors)
    if form == "latex":
        return latex.render(tables, errors=errors)
    if form == "json":
        return json.render(tables, board=board, errors=errors) + "\n"
    raise unknown("format", form, FORMATS)


def show(tables: Sequence[Table], *, errors: bool = False) -> None:
    """Print tables to standard output: drawn on a terminal, as markdown elsewhere."""
    if sys.stdout.isatty():
        from transferbench.leaderboard.render import terminal

        terminal.show(tables, errors=errors)
    else:
        print(text(tables, "markdown", board="", errors=errors))
