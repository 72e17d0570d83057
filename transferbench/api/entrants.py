"""Who takes part: a board's models as recipes and references, and the runs on this machine.

This is where boards and pretraining meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferbench.backbones.reference import Reference, parse_reference, random_reference
from transferbench.errors import NotAtHand, UserError, unknown
from transferbench.leaderboard.board import Board, BoardModel
from transferbench.leaderboard.jobs import Entrant
from transferbench.leaderboard.local import row_name
from transferbench.pretrain.recipe import Recipe, load_recipe
from transferbench.pretrain.run import finished_run, list_runs, run_folder
from transferbench.storage import digest

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone


@dataclass(frozen=True)
class BoardRun:
    """The run that a board's model names: a reference that knows which command makes it."""

    text: str
    name: str
    command: str
    inner: Reference

    def identity(self) -> dict[str, Any]:
        """Return the run's identity; raises NotAtHand with the board's command."""
        try:
            return self.inner.identity()
        except NotAtHand as error:
            raise NotAtHand(error.reason, self.command) from error

    def load(self, device: str) -> Backbone:
        """Return the run's backbone."""
        return self.inner.load(device)


def board_recipe(
    board: Board, model: BoardModel, seed: int, overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of a board's model for one of its seeds.

    Raises
    ------
    UserError
        If the model has none, or the recipe is unknown or wrong.
    """
    if model.recipe is None:
        raise UserError(f"the model '{model.name}' of {board} is not pretrained from a recipe")
    return load_recipe(model.recipe, overrides=(*model.set, *overrides), seed=seed)


def board_seeds(board: Board, asked: Sequence[int]) -> list[int]:
    """Return those of a board's seeds that are asked for; all for none.

    Raises
    ------
    UserError
        On a seed that the board has not.
    """
    valid = board.content.seeds
    for seed in asked:
        if seed not in valid:
            raise UserError(f"{board} has the seeds {', '.join(map(str, valid))}, not {seed}")
    return [seed for seed in valid if not asked or seed in asked]


def board_folder(board: Board, model: BoardModel, recipe: Recipe, runs: Path) -> Path:
    """Where the run of a board's model lives."""
    return run_folder(recipe, runs=runs, board=board.name, model=model.name)


def board_entrants(board: Board, runs: Path) -> list[Entrant]:
    """Return the models of a board in its order; nothing is read or built yet."""
    return [_entrant(board, model, runs) for model in board.content.models]


def other_recipe(board: Board, runs: Path) -> list[Path]:
    """Return finished runs that stand where the board's belong, but come from another recipe."""
    found = []
    for model in board.content.models:
        if model.recipe is None:
            continue
        for seed in board.content.seeds:
            recipe = board_recipe(board, model, seed)
            folder = board_folder(board, model, recipe, runs)
            if (folder / "backbone.json").is_file() and finished_run(recipe, folder) is None:
                found.append(folder)
    return found


def finished_runs(runs: Path) -> list[tuple[str, str]]:
    """Return (short name, reference) of every finished run below a folder, boards' runs too.

    One whose files were damaged since stays, under its folder's name, for its jobs to tell.
    """
    found: dict[str, str] = {}
    for run in list_runs(runs):
        if run.state != "finished":
            continue
        try:
            # A copy of a run has its name, which ends in the digest, and is the same model.
            found.setdefault(*named(run.reference))
        except UserError:
            # Two damaged ones may lie in folders of one name.
            name = row_name(run.folder.name)
            apart = name if name not in found else f"{name}-{digest(run.reference)[:8]}"
            found[apart] = run.reference
    return list(found.items())


def named(text: str) -> tuple[str, str]:
    """Return (short name, reference) of a model reference.

    Raises
    ------
    UserError
        If the text is no reference.
    NotAtHand
        If what it names is absent.
    """
    reference = parse_reference(text, seed=0)
    reference.identity()
    return row_name(reference.name), text


def reference_entrant(name: str, text: str) -> Entrant:
    """Return an entrant for a model reference; the seed matters to `random:` alone."""
    return Entrant(name, lambda seed: parse_reference(text, seed=seed))


def choose(entrants: Sequence[Entrant], names: Sequence[str], board: Board) -> list[Entrant]:
    """Return the entrants of the given names in the board's order; all for no names.

    Raises
    ------
    UserError
        On a name that the board has not, with the nearest.
    """
    valid = [entrant.name for entrant in entrants]
    for name in names:
        if name not in valid:
            raise unknown("model", name, valid, str(board))
    return [entrant for entrant in entrants if not names or entrant.name in names]


def _entrant(board: Board, model: BoardModel, runs: Path) -> Entrant:
    def reference(seed: int) -> Reference:
        if model.recipe is not None:
            recipe = board_recipe(board, model, seed)
            text = f"run:{board_folder(board, model, recipe, runs)}"
            command = f"transferbench pretrain --method {recipe.method} --board {board.name}"
            if runs != Path("runs"):
                command += f" --runs {runs}"
            return BoardRun(text, model.name, command, parse_reference(text, seed=seed))
        if model.backbone_of is not None:
            recipe = load_recipe(model.backbone_of, overrides=model.set, seed=seed)
            crop = recipe.views[0].crop
            text = random_reference(
                recipe.backbone,
                recipe.evaluation_size,
                recipe.normalization.mean,
                recipe.normalization.std,
                "bilinear" if crop is None else crop.interpolation,
            )
            return parse_reference(text, seed=seed)
        if model.backbone is not None and model.eval_size is not None:
            return parse_reference(random_reference(model.backbone, model.eval_size), seed=seed)
        assert model.reference is not None
        return parse_reference(model.reference, seed=seed)

    return Entrant(model.name, reference)
