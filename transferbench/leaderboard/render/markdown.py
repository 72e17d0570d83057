"""Tables as markdown, kept between two markers of a board's README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transferbench.errors import UserError
from transferbench.leaderboard.table import Cell, Table
from transferbench.storage import write_atomic

BEGIN = "<!-- transferbench:begin -->"
END = "<!-- transferbench:end -->"


def render(tables: Sequence[Table], *, errors: bool = False) -> str:
    """Return all tables, one section per protocol, each with its footnote."""
    return "\n".join(_section(table, errors=errors) for table in tables)


def update(text: str | None, title: str, command: str, rendered: str, where: Path) -> str:
    """Put rendered tables into a README and leave the text around them as it is.

    Parameters
    ----------
    text : str or None
        The present content; None for a new file.
    title, command : str
        Head of a new file, and the command that renders it.
    rendered : str
        From `render`.
    where : Path
        The file, for messages.

    Raises
    ------
    UserError
        If only one marker is there, or they are in the wrong order or stand twice.
    """
    block = f"{BEGIN}\n{rendered}{END}\n"
    if text is None:
        return f"# {title}\n\nRendered by `{command}`; text outside the markers stays.\n\n{block}"
    begins, ends = text.count(BEGIN), text.count(END)
    if begins == ends == 0:
        return f"{text.rstrip()}\n\n{block}".lstrip()
    if begins != 1 or ends != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{where} must hold {BEGIN} and {END} once each, in this order")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{block.rstrip()}{after}"


def read(path: Path) -> str | None:
    """Return a README's text, None if there is none.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def save(path: Path, text: str) -> bool:
    """Write a README if its content changes, and return whether it did."""
    if read(path) == text:
        return False
    write_atomic(path, text)
    return True


def _section(table: Table, *, errors: bool) -> str:
    head = ["model", *(_escape(table.heading(column)) for column in table.columns)]
    body = [
        [_escape(model), *(_cell(table.cells[model, c], errors=errors) for c in table.columns)]
        for model in table.models
    ]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *_right(row[1:], widths[1:])]) + " |"
        for row in [head, rule, *body]
    ]
    notes = "\n".join(f"- {_escape(line)}" for line in table.footnote)
    return f"## {_escape(table.protocol)}\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


def _right(texts: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [text.rjust(width) for text, width in zip(texts, widths, strict=True)]


def _cell(cell: Cell, *, errors: bool) -> str:
    if cell.value is None:
        return {"missing": "–"}.get(cell.note, cell.note)
    number = f"{cell.value:.2f}"
    if cell.mark == "best":
        number = f"**{number}**"
    elif cell.mark == "second":
        number = f"<u>{number}</u>"
    error = f" ± {cell.error:.2f}" if errors and cell.error is not None else ""
    return number + ("†" if cell.note else "") + error


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
