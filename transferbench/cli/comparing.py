"""The command `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from transferbench.cli.options import DataRoot, Json, Quiet, Runs, progress, show, text


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A model of the board.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    board: Annotated[
        str | None, text("--board", metavar="B", help="Name or file.  [default: local]")
    ] = None,
    datasets: Annotated[
        list[str] | None,
        text("--dataset", metavar="NAME", help="Only this data set; repeatable."),
    ] = None,
    protocols: Annotated[
        list[str] | None,
        text("--protocol", metavar="NAME", help="Only this protocol; repeatable."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", min=0, help="[default: the first that both have]"),
    ] = None,
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Compare two models on the same test images: paired bootstrap and McNemar, Holm-corrected."""
    from transferbench import api
    from transferbench.api.comparing import comparison_lines

    found = api.compare(
        first,
        second,
        board=board,
        datasets=datasets or (),
        protocols=protocols or (),
        seed=seed,
        runs=runs,
        data_root=data_root,
        progress=progress(quiet),
    )
    show(found.plain(), comparison_lines(found), as_json, quiet)
    return 0
