"""What `transferbench list` shows: names first, with what is known without importing them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transferbench import registry
from transferbench.errors import UserError, unknown
from transferbench.protocols.variants import VARIANTS

Rows = list[dict[str, Any]]


def methods() -> Rows:
    """Registered pretraining methods."""
    return [{"name": name} for name in registry.names("methods")]


def protocols() -> Rows:
    """Registered evaluation protocols, then the names of variants with what these stand for."""
    variants = [
        {"name": name, "protocol": protocol, "parameters": dict(parameters)}
        for name, (protocol, parameters) in VARIANTS.items()
    ]
    return [*({"name": name} for name in registry.names("protocols")), *variants]


def datasets(data_root: Path | None) -> Rows:
    """Registered data sets and folders under the data root; `source` says which was found.

    Of each: whether it is at hand and where, or where it was looked for and how to get it; its
    size and its licence.
    """
    from transferbench.data.sources import summaries

    return [
        {
            "name": each.name,
            "source": each.kind,
            "task": each.task,
            "metric": each.metric,
            "classes": each.classes,
            "counts": dict(each.counts),
            "at_hand": each.at_hand,
            "where": each.where,
            "looked": [] if each.at_hand else list(each.looked),
            "get": "" if each.at_hand else each.how,
            "size": each.size,
            "licence": each.licence,
            **({"problem": each.problem} if each.problem else {}),
        }
        for each in summaries(data_root)
    ]


def recipes() -> Rows:
    """Recipes of ./recipes and the packaged ones."""
    from transferbench.pretrain.recipe import recipe_names

    return [{"name": name} for name in recipe_names()]


def boards() -> Rows:
    """Boards of ./leaderboards and the packaged ones; a broken one tells its problem."""
    from transferbench.leaderboard.board import board_names, find_board

    rows: Rows = []
    for name in board_names():
        try:
            rows.append({"name": name, "title": find_board(name).title})
        except UserError as error:
            rows.append({"name": name, "problem": str(error)})
    return rows


def runs(folder: Path) -> Rows:
    """Run folders, boards' runs too."""
    from transferbench.pretrain.run import list_runs

    return [
        {
            "name": run.folder.as_posix(),
            "method": run.recipe.method,
            "data": run.recipe.data,
            "seed": run.recipe.seed,
            "state": run.state,
            "seconds": round(run.seconds, 1),
        }
        for run in list_runs(folder)
    ]


def rows(what: str, *, data_root: Path | None, runs_folder: Path) -> Rows:
    """Return one dictionary per name, "name" first.

    Parameters
    ----------
    what : str
        "methods", "datasets", "protocols", "recipes", "boards" or "runs".

    Raises
    ------
    UserError
        On any other word, with the nearest.
    """
    found: dict[str, Callable[[], Rows]] = {
        "methods": methods,
        "datasets": lambda: datasets(data_root),
        "protocols": protocols,
        "recipes": recipes,
        "boards": boards,
        "runs": lambda: runs(runs_folder),
    }
    if what not in found:
        raise unknown("list", what, found)
    return found[what]()
