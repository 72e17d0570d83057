"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from transferbench.leaderboard.table import Cell, Table


def show(tables: Sequence[Table], *, errors: bool = False) -> None:
    """Print tables to standard output with rich: best bold, second best underlined."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    for table in tables:
        grid = RichTable(title=table.protocol, title_justify="left", header_style="")
        grid.add_column("model")
        for column in table.columns:
            grid.add_column(Text(table.heading(column)), justify="right")
        for model in table.models:
            cells = [table.cells[model, column] for column in table.columns]
            texts = [Text(_plain(c, errors=errors), style=_STYLES[c.mark]) for c in cells]
            grid.add_row(Text(model), *texts)
        console.print(grid)
        for line in table.footnote:
            console.print(Text(line.replace("`", ""), style="dim"))


_STYLES = {"": "", "best": "bold", "second": "underline"}


def _plain(cell: Cell, *, errors: bool) -> str:
    if cell.value is None:
        return "–" if cell.note == "missing" else cell.note
    error = f" ± {cell.error:.2f}" if errors and cell.error is not None else ""
    return f"{cell.value:.2f}{'†' if cell.note else ''}{error}"
