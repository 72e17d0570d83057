"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from transferbench.cli.options import Json, Quiet, show


def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, or any model reference.")
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="FORM", help="timm, torchvision, safetensors or hub-folder."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Default: exports/MODEL/FORM."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write a backbone as other tools load it, with a model card that tells recipe and results."""
    from transferbench.api.exporting import export as write

    done = write(model, to, out=out)
    files = ", ".join(done.files)
    lines = [f"{done.folder}: {files}; the card tells {done.results} results"]
    show(done.plain(), lines, as_json, quiet)
    return 0
