r"""Tables as LaTeX for booktabs: \textbf marks the best of a column, \underline the second."""

from __future__ import annotations

from collections.abc import Sequence

from transferbench.leaderboard.table import Cell, Table

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "±": r"$\pm$", "–": "--",
}  # fmt: skip


def render(tables: Sequence[Table], *, errors: bool = False) -> str:
    r"""Return one `tabular` per protocol, footnotes below it as comments."""
    return "\n".join(_tabular(table, errors=errors) for table in tables)


def _tabular(table: Table, *, errors: bool) -> str:
    heads = ["model", *(table.heading(column) for column in table.columns)]
    rows = [
        [_escape(model), *(_cell(table.cells[model, c], errors=errors) for c in table.columns)]
        for model in table.models
    ]
    lines = [
        f"% {table.protocol}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(_escape(head) for head in heads) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {line}" for line in table.footnote),
    ]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell, *, errors: bool) -> str:
    if cell.value is None:
        return "--" if cell.note == "missing" else _escape(cell.note)
    number = f"{cell.value:.2f}"
    if cell.mark:
        command = "textbf" if cell.mark == "best" else "underline"
        number = rf"\{command}{{{number}}}"
    dagger = r"$^\dagger$" if cell.note else ""
    error = rf" $\pm$ {cell.error:.2f}" if errors and cell.error is not None else ""
    return number + dagger + error


def _escape(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)
