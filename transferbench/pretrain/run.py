"""A run folder: what a pretraining run leaves behind, and how it is begun, continued, finished.

Importing this module costs no torch; a finished run of the same recipe is told without it.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transferbench.errors import NotAtHand, UserError
from transferbench.pretrain import PretrainingFailed
from transferbench.pretrain.log import read_log
from transferbench.pretrain.recipe import (
    Recipe,
    differences,
    dumps,
    parse_recipe,
    read_toml,
    resolve,
)
from transferbench.progress import SILENT, Progress
from transferbench.storage import make_folder, write_atomic

if TYPE_CHECKING:
    from transferbench.data.sources import Source

State = Literal["finished", "unfinished"]

FILES = {
    "recipe.toml": "the resolved recipe, every default filled in; "
    "`transferbench pretrain --recipe recipe.toml` reproduces the run",
    "backbone.safetensors": "the pretrained backbone's weights, without the method's heads",
    "backbone.json": "its architecture, preprocessing and digest, and how to load it in plain timm",
    "checkpoint.pt": "the whole state of the last save: method with heads, optimizer, random "
    "generators, step; an interrupted run continues from it",
    "log.jsonl": "one JSON line every few steps (loss, learning rate, images/s, what the method "
    "watches) and one an epoch (spread and effective rank of the features)",
    "loss.png": "the log as curves",
    "run.json": "state, versions, command line, device, seconds, data fingerprint",
    "README.md": "this text",
}
_LOCK = ".lock"


@dataclass(frozen=True)
class Run:
    """A run folder and what it holds.

    Attributes
    ----------
    folder : Path
    recipe : Recipe
        As resolved.
    state : {"finished", "unfinished"}
    seconds : float
        Time spent training, over all processes that worked on it; of an unfinished run up to the
        last epoch that it logged.
    """

    folder: Path
    recipe: Recipe
    state: State
    seconds: float

    @property
    def reference(self) -> str:
        """The model reference that `evaluate --model` takes."""
        return f"run:{self.folder}"

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run folder.

        Raises
        ------
        UserError
            If it is none.
        """
        if not (folder / "recipe.toml").is_file():
            raise UserError(f"{folder} is not a run folder: it holds no recipe.toml")
        where = str(folder / "recipe.toml")
        recipe = parse_recipe(read_toml(folder / "recipe.toml"), where)
        notes = _notes(folder)
        state: State = "finished" if notes.get("state") == "finished" else "unfinished"
        return cls(folder, recipe, state, float(notes.get("seconds") or _logged_seconds(folder)))


def run_folder(
    recipe: Recipe, *, runs: Path, board: str | None = None, model: str | None = None
) -> Path:
    """Where a run lives: `RUNS/[board/]model-data-sSEED`; the model is by default the method."""
    name = f"{model or recipe.method}-{recipe.data_name}-s{recipe.seed}"
    return runs / board / name if board else runs / name


def list_runs(root: Path) -> list[Run]:
    """All run folders below `root`, sorted by path; what cannot be read is left out."""
    found = []
    for file in sorted(root.rglob("run.json")):
        try:
            found.append(Run.open(file.parent))
        except UserError:
            continue
    return found


def finished_run(recipe: Recipe, folder: Path) -> Run | None:
    """The run in `folder` if it has finished and came from this very recipe; imports no torch."""
    notes = _notes(folder)
    if notes.get("state") != "finished" or recipe.digest() not in (
        notes.get("recipe"), notes.get("asked"),
    ):  # fmt: skip
        return None
    return Run.open(folder) if (folder / "backbone.json").is_file() else None


def pretrain(
    recipe: Recipe,
    folder: Path,
    *,
    source: Source,
    device: str | None = None,
    restart: bool = False,
    skip_corrupt: int = 0,
    progress: Progress = SILENT,
) -> Run:
    """Train a recipe into a run folder, or continue there, or find it done.

    Parameters
    ----------
    recipe : Recipe
    folder : Path
        Made if need be; see `run_folder`.
    source : Source
        The data set that `recipe.data` names.
    device : str, optional
        "cpu", "cuda", ...; None takes CUDA where present.
    restart : bool
        Begin anew, whatever the folder holds of an earlier run.
    skip_corrupt : int
        Images that cannot be decoded and may be left out.
    progress : Progress

    Raises
    ------
    UserError
        If recipe, data and method do not fit, the folder holds another recipe's run, or another
        process is writing it. Nothing is written then.
    PretrainingFailed
        If the loss is no number; the last good checkpoint is kept.
    KeyboardInterrupt, SystemExit
        On SIGINT or SIGTERM, with the state saved.
    """
    if not restart and (done := finished_run(recipe, folder)) is not None:
        refuse_other_data(done, source)
        return done
    from transferbench.pretrain.loop import Trainer

    asked = recipe.digest()
    recipe = resolve(recipe)
    if not restart:
        _refuse_other(recipe, folder)
        if (done := finished_run(recipe, folder)) is not None:
            refuse_other_data(done, source)
            return done
    dataset = source.load(skip_corrupt=skip_corrupt, progress=progress)
    # Bad input shows here, before a file is written.
    trainer = Trainer(recipe, dataset, device=device, progress=progress)

    with _locked(folder):
        if restart:
            _clear(folder)
        else:
            _refuse_other(recipe, folder)
            if (done := finished_run(recipe, folder)) is not None:
                return done
        _sweep(folder)
        notes = {
            "schema": 1,
            "state": "unfinished",
            "method": recipe.method,
            "seed": recipe.seed,
            "data": {"name": dataset.name, "kind": source.kind, **trainer.about_data()},
            "recipe": recipe.digest(),
            "asked": asked,
            "device": trainer.device_name,
            "command": _command(),
            "made_with": _versions(),
        }
        write_atomic(folder / "recipe.toml", dumps(recipe))
        write_atomic(folder / "README.md", _readme(recipe))
        _write_notes(folder, notes)
        try:
            trainer.run(folder)
        except PretrainingFailed as failure:
            _write_notes(folder, {**notes, "failure": str(failure)})
            raise
        trainer.export(folder)
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        _write_notes(folder, {**notes, **trainer.about_cost(), "ended": ended, "state": "finished"})
    return Run.open(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock goes with the process, however it ends."""
    make_folder(folder)
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is pretraining into {folder}; wait for it, or give another --runs"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _refuse_other(recipe: Recipe, folder: Path) -> None:
    """Refuse to continue a run whose resolved recipe is another."""
    if not (folder / "recipe.toml").is_file():
        return
    try:
        held = Run.open(folder).recipe
    except UserError as error:
        raise UserError(f"{error}; --restart replaces the run in {folder}") from None
    if changed := differences(recipe, held):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{folder} holds a run of another recipe (asked / held: "
            f"{', '.join(changed[:3])}{more}); --restart replaces it, another --runs keeps it"
        )


def refuse_other_data(run: Run, source: Source) -> None:
    """Refuse to call a run finished if its data set has changed since; absent data is no matter.

    Raises
    ------
    UserError
        If the images are others.
    """
    try:
        identity = source.identity()
    except NotAtHand:
        return
    if _notes(run.folder).get("data", {}).get("fingerprint") != identity:
        raise UserError(
            f"the images of '{run.recipe.data}' are not those that the run in {run.folder} was "
            "trained on; --restart replaces it, another --runs keeps it"
        )


def _clear(folder: Path) -> None:
    """Remove an earlier run's files, the evidence that it finished first."""
    for name in ("run.json", "backbone.json", *FILES):
        (folder / name).unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what a kill inside a write left behind."""
    for stray in folder.glob(".*.tmp"):
        stray.unlink(missing_ok=True)


def _notes(folder: Path) -> dict[str, Any]:
    """The content of run.json; empty if there is none or it is no JSON object."""
    try:
        notes = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _logged_seconds(folder: Path) -> float:
    """Time spent training up to the last epoch in the log."""
    return max((line.get("seconds", 0.0) for line in read_log(folder / "log.jsonl")), default=0.0)


def _write_notes(folder: Path, notes: dict[str, Any]) -> None:
    write_atomic(folder / "run.json", json.dumps(notes, indent=2) + "\n")


def _versions() -> dict[str, str]:
    """Versions of what computes."""
    packages = ("transferbench", "torch", "torchvision", "timm", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _command() -> str:
    """The command line as typed, absolute paths reduced to their last part."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else []
    return shlex.join(re.sub(r"(^|[=:])/(?:\S*/)*", r"\1", word) for word in words)


def _readme(recipe: Recipe) -> str:
    """The text that explains a run folder."""
    rows = "\n".join(f"| `{name}` | {what} |" for name, what in FILES.items())
    return f"""# {recipe.method} on {recipe.data_name}, seed {recipe.seed}

A pretraining run of transferbench. Evaluate it on a labelled data set with
`transferbench evaluate --model run:THIS_FOLDER --dataset NAME`.

| File | What it is |
| --- | --- |
{rows}

Files appear as the run proceeds; `run.json` says whether it has finished. The same command that
began the run continues it; `--restart` begins anew. The hidden `.lock` only keeps two processes
from writing here at once.
"""
