"""Options that several commands share, and how all of them print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from transferbench.progress import Progress

DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        envvar="TRANSFERBENCH_DATA",
        metavar="DIR",
        help="Folder whose sub-folders are data sets.",
    ),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of pretraining runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show errors only.")]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="D", help="cpu, cuda, cuda:N or mps.  [default: CUDA if any]"),
]
SkipCorrupt = Annotated[
    int,
    typer.Option("--skip-corrupt", metavar="N", min=0, help="Leave out up to N corrupt images."),
]


def text(*names: str, metavar: str, help: str) -> Any:
    """Return an option that takes a text."""
    return typer.Option(*names, metavar=metavar, help=help)


def progress(quiet: bool) -> Progress:
    """Return what shows progress on standard error."""
    return Progress("quiet" if quiet else "auto")


def show(document: dict[str, Any], lines: Sequence[str], as_json: bool, quiet: bool) -> None:
    """Print a document as JSON, or lines for people, to standard output."""
    if as_json:
        import json

        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif not quiet:
        for line in lines:
            print(line)
