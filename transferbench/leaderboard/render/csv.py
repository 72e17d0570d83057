"""Tables as comma-separated values: percentages with two decimals, nothing where none counts."""

from __future__ import annotations

from collections.abc import Sequence

from transferbench.leaderboard.table import Table


def render(tables: Sequence[Table], *, errors: bool = False) -> str:
    """Return all tables as one text: columns protocol, model, the data sets, average."""
    import pandas as pd

    if not tables:
        return ""
    frame = pd.concat([table.frame(errors=errors) for table in tables], ignore_index=True)
    return str(frame.to_csv(index=False, float_format="%.2f", lineterminator="\n"))
