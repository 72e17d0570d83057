"""`transferbench export`: a backbone in another tool's form, with a card that says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferbench import registry
from transferbench.backbones.reference import RunReference, parse_reference
from transferbench.backbones.settings import NetworkSettings, Preprocessing
from transferbench.errors import UserError, unknown
from transferbench.leaderboard.local import row_name
from transferbench.leaderboard.portable import portable
from transferbench.leaderboard.record import Record, read_all
from transferbench.leaderboard.units import shown
from transferbench.storage import packaged_folders, write_atomic

if TYPE_CHECKING:
    from transferbench.backbones.handing import Handed

CARD = "README.md"
BOARDS = "leaderboards"


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes
    ----------
    model : str
        The reference.
    folder : Path
    files : list of str
        Names in the folder, the card last.
    results : int
        Records that the card tells.
    """

    model: str
    folder: Path
    files: list[str]
    results: int

    def plain(self) -> dict[str, Any]:
        """The export as JSON values."""
        return {
            "model": self.model,
            "folder": self.folder.as_posix(),
            "files": self.files,
            "results": self.results,
        }


def export(model: str, to: str, *, out: str | Path | None = None) -> Exported:
    """Write a backbone in another tool's form, with a model card.

    Parameters
    ----------
    model : str
        A run's folder, or any model reference.
    to : {"timm", "torchvision", "safetensors", "hub-folder"}
    out : path, optional
        The folder; default `exports/MODEL/FORM`.

    Raises
    ------
    UserError
        If there is no such model or form, or the form cannot hold this architecture.
    """
    from transferbench.backbones.handing import FORMS, hand_over

    if to not in FORMS:
        raise unknown("form", to, FORMS, "--to")
    kind, colon, _ = model.partition(":")
    text = model if colon and kind in registry.names("backbones") else f"run:{model}"
    reference = parse_reference(text, seed=0)
    identity = reference.identity()
    name = row_name(reference.name)
    folder = Path(out) if out is not None else Path("exports") / name / to
    if folder.is_file():
        raise UserError(f"cannot write into {folder}: it is a file; give another --out")
    network = NetworkSettings.model_validate(identity["network"])
    preprocessing = Preprocessing.model_validate(identity["preprocessing"])
    module = reference.load("cpu").module
    handed = hand_over(folder, to, module, network, preprocessing, name=name)  # type: ignore[arg-type]
    records = results_of(identity["digest"])
    recipe = reference.folder / "recipe.toml" if isinstance(reference, RunReference) else None
    card = model_card(name, portable(text), network, preprocessing, handed, records, recipe)
    write_atomic(folder / CARD, card)
    return Exported(text, folder, [*handed.files, CARD], len(records))


def results_of(digest: str) -> list[Record]:
    """Return what was measured of a model on boards, one's own and the packaged, each job once."""
    found: dict[str, Record] = {}
    folders = [board for each in packaged_folders(BOARDS) for board in sorted(each.glob("*"))]
    for board in folders:
        for record in read_all(board)[0].values():
            of_it = record.job.model.identity.get("digest") == digest
            if record.kind == "measured" and of_it:
                found.setdefault(record.key, record)
    return sorted(found.values(), key=lambda r: (r.job.protocol.name, r.job.dataset.name))


def model_card(
    name: str,
    reference: str,
    network: NetworkSettings,
    preprocessing: Preprocessing,
    handed: Handed,
    records: Sequence[Record],
    recipe: Path | None,
) -> str:
    """Return the card: the Hub's metadata with the results, how to load it, table and recipe."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=(
                "image-feature-extraction" if record.metric == "rankme" else "image-classification"
            ),
            task_name=f"{record.job.protocol.name}, {_of_what(record)}",
            dataset_type=record.job.dataset.name,
            dataset_name=record.job.dataset.name,
            metric_type="accuracy" if record.metric == "top1" else str(record.metric),
            metric_name=f"{record.job.protocol.name}, {record.metric}",
            metric_value=_value(record),
            metric_args={"standard_error": _error(record), "n": record.n, "seed": record.job.seed},
        )
        for record in records
    ]
    data = ModelCardData(
        model_name=name,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "transferbench", "image-feature-extraction"],
        eval_results=results or None,
    )
    mean, std = (", ".join(f"{v:g}" for v in values) for values in _channels(preprocessing))
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        f"The backbone `{network.name}` of `{reference}`, without a classifier: images to "
        f"features. Exported by transferbench {version('transferbench')}.\n",
        "## Loading\n",
        f"In this folder:\n\n```python\n{handed.code}```\n",
        f"Images: the shorter side to {preprocessing.input_size} px "
        f"({preprocessing.interpolation}), centre crop, scaled to [0, 1], "
        f"mean ({mean}), standard deviation ({std}).\n",
        "## Results\n",
        _table(records),
    ]
    if recipe is not None and recipe.is_file():
        parts += ["## Recipe\n", f"```toml\n{recipe.read_text(encoding='utf-8').rstrip()}\n```\n"]
    return "\n".join(parts)


def _table(records: Sequence[Record]) -> str:
    if not records:
        return "None are recorded on a board yet.\n"
    lines = ["| protocol | data set | metric | value | ± | images | seed |", "|" + " --- |" * 7]
    for record in records:
        job = record.job
        lines.append(
            f"| {job.protocol.name} | {job.dataset.name} | {record.metric} | {_value(record):g} | "
            f"{_error(record) or ''} | {record.n} | {job.seed} |"
        )
    return "\n".join(lines) + "\n\nShares are in %; ± is the standard error.\n"


def _of_what(record: Record) -> str:
    whole = record.job.protocol.protocol == "finetune"
    return "the whole network trained" if whole else "on frozen features"


def _value(record: Record) -> float:
    assert record.value is not None
    return round(shown(record.metric) * record.value, 2)


def _error(record: Record) -> float | None:
    return (
        None
        if record.standard_error is None
        else round(shown(record.metric) * record.standard_error, 2)
    )


def _channels(preprocessing: Preprocessing) -> tuple[Sequence[float], Sequence[float]]:
    return preprocessing.mean, preprocessing.std
