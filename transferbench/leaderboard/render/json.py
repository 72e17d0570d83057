"""Tables as one JSON document: percentages, not rounded, null where none counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transferbench.leaderboard.table import Table


def render(tables: Sequence[Table], *, board: str, errors: bool = False) -> str:
    """Return all tables as JSON text."""
    return json.dumps(document(tables, board=board, errors=errors), indent=2, ensure_ascii=False)


def document(tables: Sequence[Table], *, board: str, errors: bool = False) -> dict[str, Any]:
    """Return all tables as JSON values.

    Returns
    -------
    dict
        {"board", "unit", "tables": [{"protocol", "columns": [{"dataset", "metric",
        "in_average"}], "rows": [{"model", "values", "marks", "notes"}], "footnote"}]}; `values`,
        `marks`, `notes`, and with `errors` also `standard_errors`, are by data set and "average".
    """
    return {
        "board": board,
        "unit": "percent",
        "tables": [_table(table, errors=errors) for table in tables],
    }


def _table(table: Table, *, errors: bool) -> dict[str, Any]:
    rows = []
    for model in table.models:
        cells = {column: table.cells[model, column] for column in table.columns}
        row: dict[str, Any] = {
            "model": model,
            "values": {c: cell.value if cell.counts else None for c, cell in cells.items()},
            "marks": {c: cell.mark for c, cell in cells.items() if cell.mark},
            "notes": {c: cell.note for c, cell in cells.items() if cell.note},
        }
        if errors:
            row["standard_errors"] = {
                c: cell.error if cell.counts else None for c, cell in cells.items()
            }
        rows.append(row)
    columns = [
        {
            "dataset": dataset,
            "metric": table.metrics.get(dataset),
            "in_average": table.in_average(dataset),
        }
        for dataset in table.datasets
    ]
    return {
        "protocol": table.protocol,
        "columns": columns,
        "rows": rows,
        "footnote": list(table.footnote),
    }
