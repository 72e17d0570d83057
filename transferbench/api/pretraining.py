"""Recipes to runs: one method, all methods, or the models of a board."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferbench import registry
from transferbench.api.entrants import board_folder, board_recipe, board_seeds
from transferbench.api.machine import RUNS, check_device, choose_device, find_root
from transferbench.data.sources import find_source
from transferbench.errors import UserError, unknown
from transferbench.leaderboard.board import find_board
from transferbench.pretrain import PretrainingFailed
from transferbench.pretrain.recipe import Recipe, load_recipe, recipe_names
from transferbench.pretrain.run import Run, finished_run, refuse_other_data, run_folder
from transferbench.pretrain.run import pretrain as train
from transferbench.progress import Progress


def pretrain(
    method: str | None = None,
    *,
    scale: str | None = None,
    recipe: str | Path | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    runs: str | Path = RUNS,
    restart: bool = False,
    data_root: str | Path | None = None,
    skip_corrupt: int = 0,
    progress: Progress | None = None,
) -> Run:
    """Pretrain a network, continue an interrupted run, or find it finished.

    Parameters
    ----------
    method : str, optional
        E.g. "swav". Not needed with `recipe`, which names it.
    scale : str, optional
        "tiny", "small": which of the method's recipes. Default "small" with CUDA, else "tiny".
    recipe : str or Path, optional
        A recipe's name, e.g. "tiny/swav", or file; instead of method and scale.
    data : str, optional
        A data set's name or `folder:PATH`, instead of the recipe's.
    overrides : sequence of str
        Changes to the recipe, e.g. "optimizer.lr=0.3".
    seed : int, optional
        Instead of the recipe's.
    device : str, optional
        "cpu", "cuda", "cuda:1"; default CUDA where present.
    runs : path
        The run's folder is `runs`/METHOD-DATA-sSEED.
    restart : bool
        Begin anew, replacing what the folder holds.
    data_root : path, optional
        Its sub-folders are data sets; default $TRANSFERBENCH_DATA.
    skip_corrupt : int
        Corrupt images that may be left out.

    Raises
    ------
    UserError
        On bad input; nothing is written then.
    PretrainingFailed
        If the loss is no number.
    """
    chosen = choose_recipe(method, scale, recipe, overrides=overrides, data=data, seed=seed)
    folder = run_folder(chosen, runs=Path(runs))
    if not restart and (done := _finished(chosen, folder, data_root)) is not None:
        return done
    return train(
        chosen,
        folder,
        source=find_source(chosen.data, data_root=find_root(data_root)),
        device=choose_device(device),
        restart=restart,
        skip_corrupt=skip_corrupt,
        progress=progress or Progress(),
    )


def choose_recipe(
    method: str | None,
    scale: str | None = None,
    recipe: str | Path | None = None,
    **given: Any,
) -> Recipe:
    """Return the recipe of a method at a scale, or the one that is named, with changes.

    Raises
    ------
    UserError
        If the choice is empty or contradicts itself, or a name is unknown.
    """
    if recipe is not None:
        if scale is not None:
            raise UserError(f"a recipe has its own scale; leave out '{scale}' or '{recipe}'")
        chosen = load_recipe(str(recipe), **given)
        if method is not None and method != chosen.method:
            raise UserError(
                f"the recipe '{recipe}' is for the method '{chosen.method}', not '{method}'"
            )
        return chosen
    if method is None:
        raise UserError("say what to pretrain: a method or a recipe")
    if method not in registry.names("methods"):
        raise unknown("method", method, registry.names("methods"))
    scales = sorted({name.partition("/")[0] for name in recipe_names() if "/" in name})
    if scale is None:
        scale = "small" if choose_device(None) == "cuda" else "tiny"
    elif scale not in scales:
        raise unknown("scale", scale, scales)
    return load_recipe(f"{scale}/{method}", **given)


@dataclass(frozen=True)
class Pretrained:
    """What became of one run that was asked for.

    Attributes
    ----------
    state : str
        "finished", "failed", or "refused" for bad input.
    seconds : float
        Time spent training, over all processes that worked on it.
    already : bool
        Whether it had finished before.
    problem : str
        Why it failed or was refused.
    """

    method: str
    folder: Path
    state: str
    seconds: float
    already: bool = False
    problem: str = ""

    def plain(self) -> dict[str, Any]:
        """The run as JSON values, as `pretrain --json` prints it."""
        return {
            "method": self.method,
            "folder": self.folder.as_posix(),
            "state": self.state,
            "seconds": round(self.seconds, 1),
        }


def pretrain_recipes(
    recipes: Sequence[tuple[Recipe, Path]],
    *,
    device: str | None = None,
    restart: bool = False,
    data_root: str | Path | None = None,
    skip_corrupt: int = 0,
    progress: Progress | None = None,
) -> list[Pretrained]:
    """Pretrain recipes into folders one after the other; one that fails does not stop the rest.

    Raises
    ------
    UserError
        On bad input that all of them have in common; what one alone is refused for is its
        `problem`.
    """
    progress = progress or Progress()
    check_device(device)
    done: list[Pretrained] = []
    refusals: list[UserError] = []
    for number, (recipe, folder) in enumerate(recipes, start=1):
        started = time.monotonic()
        already = False
        try:
            run = None if restart else _finished(recipe, folder, data_root)
            already = run is not None
            if run is None:
                source = find_source(recipe.data, data_root=find_root(data_root))
                if len(recipes) > 1:
                    progress.say(f"{number} of {len(recipes)}: {recipe.method} on {recipe.data}")
                run = train(
                    recipe,
                    folder,
                    source=source,
                    device=choose_device(device),
                    restart=restart,
                    skip_corrupt=skip_corrupt,
                    progress=progress,
                )
        except UserError as error:
            refusals.append(error)
            done.append(Pretrained(recipe.method, folder, "refused", 0.0, problem=str(error)))
        except PretrainingFailed as error:
            spent = time.monotonic() - started
            done.append(Pretrained(recipe.method, folder, "failed", spent, problem=str(error)))
        else:
            done.append(Pretrained(recipe.method, folder, run.state, run.seconds, already))
    if len(refusals) == len(recipes) and len(set(map(str, refusals))) == 1:
        raise refusals[0]
    return done


def method_recipes(
    methods: Sequence[str],
    *,
    scale: str | None = None,
    recipe: str | Path | None = None,
    runs: str | Path = RUNS,
    **given: Any,
) -> list[tuple[Recipe, Path]]:
    """Return the recipes of methods, all for none, with their run folders; see `choose_recipe`."""
    if recipe is not None:
        method = methods[0] if methods else None
        chosen = [choose_recipe(method, scale, recipe, **given)]
    else:
        names = methods or registry.names("methods")
        chosen = [choose_recipe(name, scale, **given) for name in names]
    return [(each, run_folder(each, runs=Path(runs))) for each in chosen]


def board_recipes(
    board: str,
    *,
    method: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    runs: str | Path = RUNS,
) -> list[tuple[Recipe, Path]]:
    """Return the recipes of a board with their run folders, for every seed of the board.

    Parameters
    ----------
    method : str, optional
        Only the models of this method, or of this name.
    seed : int, optional
        Only this one of the board's seeds.

    Raises
    ------
    UserError
        If the board, or the method on it, is unknown.
    """
    found = find_board(board)
    seeds = board_seeds(found, [] if seed is None else [seed])
    chosen = []
    names: set[str] = set()
    for model in found.content.models:
        if model.recipe is None:
            continue
        for each in seeds:
            recipe = board_recipe(found, model, each, overrides)
            names |= {recipe.method, model.name}
            if method in (None, recipe.method, model.name):
                chosen.append((recipe, board_folder(found, model, recipe, Path(runs))))
    if method is not None and not chosen:
        raise unknown("method", method, names, str(found))
    return chosen


def _finished(recipe: Recipe, folder: Path, data_root: str | Path | None) -> Run | None:
    """Return the finished run of a recipe; refuse if the images at hand are others by now."""
    done = finished_run(recipe, folder)
    if done is None:
        return None
    try:
        source = find_source(recipe.data, data_root=find_root(data_root))
    except UserError:
        # Images that are gone do not undo a run.
        return done
    refuse_other_data(done, source)
    return done
