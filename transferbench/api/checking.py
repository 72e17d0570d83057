"""`transferbench check`: what a file or folder is, in full sentences, or what is wrong with it."""

from __future__ import annotations

import hashlib
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferbench import registry
from transferbench.api.weights import explain_weights
from transferbench.errors import UserError
from transferbench.progress import SILENT, Progress

if TYPE_CHECKING:
    from transferbench.data.dataset import Dataset
    from transferbench.pretrain.recipe import Recipe

# Those of `backbones.files`, which needs torch, and TensorFlow's checkpoint as it is handed out.
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".torch", ".pkl", ".index",
            ".zip")  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What was found at a path: its kind, and sentences that explain it."""

    path: str
    kind: str
    sentences: list[str]

    def plain(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {"path": self.path, "kind": self.kind, "sentences": self.sentences}


def check(path: str, *, skip_corrupt: int = 0, progress: Progress = SILENT) -> Finding:
    """Explain a data folder, a recipe, a board, a run folder or a weights file.

    Parameters
    ----------
    path : str
        A path; `WEIGHTS@ARCH` also checks that the weights fit a timm architecture; a recipe's
        or board's name will do.
    skip_corrupt : int
        Corrupt images of a data folder that are tolerated.

    Raises
    ------
    UserError
        If there is nothing, or it is wrong: one sentence.
    """
    place = Path(path)
    if place.is_dir():
        if (place / "board.toml").is_file():
            return Finding(path, "board", _board(path))
        if (place / "recipe.toml").is_file():
            return Finding(path, "run", _run(place))
        return Finding(path, "data", _data(place, skip_corrupt, progress))
    file, at, architecture = path.rpartition("@")
    if at and Path(file).is_file():
        told = explain_weights(Path(file))
        return Finding(path, "weights", [*told[:-1], _fits(path, architecture)])
    if place.is_file():
        if (about := _archive(place)) is not None:
            return Finding(path, "archive", about)
        return _file(place, path, skip_corrupt, progress)
    return _name(path)


def _file(place: Path, path: str, skip_corrupt: int, progress: Progress) -> Finding:
    if place.name == "dataset.toml":
        return Finding(path, "data", _data(place.parent, skip_corrupt, progress))
    if place.suffix == ".toml":
        try:
            keys = set(tomllib.loads(place.read_text(encoding="utf-8")))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid TOML: {error}") from error
        if keys & {"models", "protocols", "datasets", "seeds"} and "method" not in keys:
            return Finding(path, "board", _board(path))
        return Finding(path, "recipe", _recipe(path))
    if place.suffix in _WEIGHTS:
        return Finding(path, "weights", explain_weights(place))
    raise UserError(
        f"{path} is no data folder, recipe or board (.toml), or weights file "
        f"({', '.join(_WEIGHTS)})"
    )


def _name(text: str) -> Finding:
    from transferbench.leaderboard.board import board_names
    from transferbench.pretrain.recipe import recipe_names

    if text in recipe_names():
        return Finding(text, "recipe", _recipe(text))
    if text in board_names():
        return Finding(text, "board", _board(text))
    raise UserError(f"there is no file or folder {text}, and no recipe or board of this name")


def _data(folder: Path, skip_corrupt: int, progress: Progress) -> list[str]:
    from transferbench.data.sources import catalogued, find_source

    source = catalogued(folder) or find_source(f"folder:{folder}")
    with warnings.catch_warnings():
        # What they say is said below, in full sentences.
        warnings.simplefilter("ignore")
        dataset = source.load(skip_corrupt=skip_corrupt, progress=progress)
    card = dataset.card
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    which = (
        "" if source.kind == "folder" else f", read by the card '{dataset.name}' of the catalogue"
    )
    lines = [
        f"{folder} is a {_spelt(dataset.task)} data set with {dataset.num_classes} classes: "
        f"{_counts(sizes)} images{which}.",
        f"Its metric is {dataset.metric}.",
    ]
    if skipped := {n: s.skipped for n, s in dataset.splits.items() if s.skipped}:
        lines.append(f"Corrupt images left out: {_counts(skipped)}.")
    if dataset.repeats:
        lines.append(
            f"{dataset.repeats} of the test images are also among those to train on, pixel for "
            "pixel: a number measured on them says too much."
        )
    if empty := _empty_classes(dataset):
        lines.append(f"Without any training image: {_some(empty)}.")
    if "test" not in sizes:
        lines.append("It has no test split: it serves pretraining, not evaluation.")
    elif card.validation == "given":
        lines.append("Choices are made on its val split, and the test split is read once.")
    else:
        lines.append(
            "It has no val split: choices are made on a fifth of train, drawn at random, and the "
            "test split is read once."
        )
    if source.kind == "folder" and not (folder / "dataset.toml").is_file():
        lines.append(
            "It has no dataset.toml: the splits, classes and metric are what the files suggest. "
            "A card that states its counts would make a later change of the files an error."
        )
    if card.unknown_keys:
        lines.append(f"Its card has keys that nothing reads: {', '.join(card.unknown_keys)}.")
    return lines


def _empty_classes(dataset: Dataset) -> list[str]:
    labels = dataset.splits["train"].labels
    shown = {
        int(k) for k in (labels.ravel() if labels.ndim == 1 else (labels == 1).any(0).nonzero()[0])
    }
    return [name for k, name in enumerate(dataset.classes) if k not in shown]


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more


def _archive(place: Path) -> list[str] | None:
    """What is known of a file that has the name of a published archive; None of any other."""
    from transferbench.data.sources import published

    found = published(place.name)
    if not found:
        return None
    name, stated = found
    size = place.stat().st_size
    if stated.bytes is not None and size != stated.bytes:
        raise UserError(
            f"{place} has {size:,} bytes, but the published archive of '{name}' {stated.bytes:,}: "
            "the download is not whole; fetch it again"
        )
    for kind, expected in (("md5", stated.md5), ("sha256", stated.sha256)):
        if expected is None:
            continue
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, kind).hexdigest()
        if digest != expected:
            raise UserError(
                f"{place} has the {kind} {digest}, but the published archive of '{name}' "
                f"{expected}: it is damaged or another file; fetch it again"
            )
        return [f"{place} is the published archive of '{name}', whole ({kind} {digest})."]
    return [f"{place} has the size of the published archive of '{name}'."]


def _recipe(text: str) -> list[str]:
    from transferbench.pretrain.recipe import load_recipe, resolve

    recipe = resolve(load_recipe(text))
    _build(recipe)
    views = ", ".join(f"{view.count} of {view.size} px" for view in recipe.views)
    return [
        f"{text} pretrains {recipe.backbone.name} (stem {recipe.backbone.stem}) with "
        f"{recipe.method} on {recipe.data}.",
        f"It takes {recipe.epochs} epochs in batches of {recipe.batch_size}, with the optimizer "
        f"{recipe.optimizer.name} and the schedule {recipe.schedule.name}.",
        f"Each image gives these views: {views}; the backbone is evaluated at "
        f"{recipe.evaluation_size} px.",
    ]


def _build(recipe: Recipe) -> None:
    """Build what a resolved recipe trains, for one batch of images, to see that it all fits."""
    from transferbench.backbones.build import build_network
    from transferbench.methods.method import Context
    from transferbench.optim.build import build_optimizer

    kind = registry.load("methods", recipe.method)
    context = Context(
        num_images=recipe.batch_size,
        num_classes=2 if kind.reads_labels else None,
        view_sizes=tuple(view.size for view in recipe.views for _ in range(view.count)),
        batch_size=recipe.batch_size,
        total_steps=recipe.epochs,
        steps_per_epoch=1,
        epochs=recipe.epochs,
    )
    settings = kind.Settings.model_validate(recipe.settings)
    method = kind(settings, build_network(recipe.backbone, seed=recipe.seed), context)
    build_optimizer(recipe.optimizer, method.parameter_groups(), batch_size=recipe.batch_size)


def _board(text: str) -> list[str]:
    from transferbench.api.entrants import board_entrants, board_recipe
    from transferbench.leaderboard.board import find_board
    from transferbench.leaderboard.tasks import tasks

    board = find_board(text)
    content = board.content
    tasks(content.protocols, text)
    for entrant, model in zip(board_entrants(board, Path("runs")), content.models, strict=True):
        if model.recipe is not None:
            board_recipe(board, model, content.seeds[0])
        else:
            entrant.reference(content.seeds[0])
    lines = [
        f"{text} is the board '{board.name}' ({board.title}): {len(content.models)} models, "
        f"{len(content.datasets)} data sets, {len(content.protocols)} protocols, "
        f"{len(content.seeds)} seeds.",
        f"Models: {_names([m.name for m in content.models])}.",
        f"Data sets: {_names(content.datasets)}.",
        f"Protocols: {_names([p.name for p in content.protocols])}.",
        f"Its records and README go to {board.folder}.",
    ]
    if content.pretraining_data:
        lines.append(
            f"A column of {content.pretraining_data}, the pretraining set, would be left out of "
            "the average."
        )
    return lines


def _run(folder: Path) -> list[str]:
    from transferbench.pretrain.run import Run

    run = Run.open(folder)
    recipe = run.recipe
    # Before the first epoch is logged, an unfinished run's time is not known.
    after = f" after {run.seconds:.0f} s of training" if run.seconds else ""
    lines = [
        f"{folder} is a run of {recipe.method} on {recipe.data}, seed {recipe.seed}, for "
        f"{recipe.epochs} epochs; it is {run.state}{after}.",
    ]
    if run.state == "finished":
        lines.append(f"Evaluate it with --model {run.reference}.")
    else:
        lines.append("The command in its run.json continues it.")
    return lines


def _fits(path: str, architecture: str) -> str:
    from transferbench.backbones.reference import parse_reference

    backbone = parse_reference(f"file:{path}", seed=0).load("cpu")
    return f"It fits {architecture}, evaluated at {backbone.input_size} px."


def _spelt(task: str) -> str:
    return {"multiclass": "single-label", "multilabel": "multi-label"}.get(task, task)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())


def _names(names: Any) -> str:
    return ", ".join(names) or "none"
