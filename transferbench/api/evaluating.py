"""One model on one data set, and records as a frame."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferbench.api.machine import choose_device, find_root
from transferbench.backbones.reference import parse_reference
from transferbench.backbones.settings import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Triple
from transferbench.backbones.wrap import wrap_module
from transferbench.data.dataset import Dataset, Wanted
from transferbench.data.sources import Source, find_source
from transferbench.errors import UserError
from transferbench.leaderboard.board import BoardProtocol
from transferbench.leaderboard.record import read_all
from transferbench.leaderboard.tasks import tasks
from transferbench.pretrain.run import Run
from transferbench.progress import Progress
from transferbench.protocols.protocol import Outcome

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from transferbench.backbones.backbone import Backbone


def evaluate(
    model: str | Backbone | Run | nn.Module,
    dataset: str | Dataset,
    protocol: str = "linear",
    *,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    input_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    data_root: str | Path | None = None,
    skip_corrupt: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Evaluate one model on one data set; nothing but the cache is written.

    Parameters
    ----------
    model : reference, Backbone, Run or nn.Module
        A module turns normalised images (B, 3, S, S) into features (B, D).
    dataset : str or Dataset
        A name, `folder:PATH`, or a loaded data set.
    protocol : str
        A registered protocol.
    parameters : mapping, optional
        The protocol's parameters.
    seed : int
        Of all chance in the evaluation.
    device : str, optional
        Default: a module's own, else CUDA where present.
    input_size, mean, std : optional
        For a module: side of its input in pixels, and the normalisation per RGB channel. Default:
        what a timm model says of itself, else 224 and ImageNet's.

    Returns
    -------
    Outcome
        With `metric`, `value` (shares in 0..1), `standard_error`, `n`, `details`.

    Raises
    ------
    UserError
        On an unknown name, a wrong parameter, data that are not at hand, or a protocol that does
        not apply to the data set.
    """
    entry = BoardProtocol(name=protocol, parameters=dict(parameters or {}))
    (task,) = tasks([entry], "evaluate")
    progress = progress or Progress()
    source: Dataset | Source
    if isinstance(dataset, str):
        source = find_source(dataset, data_root=find_root(data_root))
    else:
        source = dataset
    card = source.card
    if not task.protocol.applies_to(card):
        raise UserError(f"the protocol '{protocol}' does not apply to a {card.task} data set")
    where = device if isinstance(model, str | Run) else device or _own_device(model)
    where = choose_device(where)
    backbone = _as_backbone(model, seed, where, input_size=input_size, mean=mean, std=std)
    if isinstance(source, Dataset):
        loaded = source
    else:
        wanted = Wanted(backbone.input_size, backbone.interpolation)
        loaded = source.load(skip_corrupt=skip_corrupt, progress=progress, wanted=wanted)
    if "test" not in loaded.splits:
        raise UserError(f"the data set '{loaded.name}' has no test split to evaluate on")
    with _evaluating(backbone.module):
        return task.protocol.run(
            backbone, loaded, task.parameters, seed=seed, device=where, progress=progress
        )


def results(folder: str | Path) -> pd.DataFrame:
    """Return the records of a board as a frame, one row per record.

    Parameters
    ----------
    folder : path
        The board's folder, e.g. "leaderboards/demo". Unreadable records are named in a warning.

    Raises
    ------
    UserError
        If there is no such folder.
    """
    from transferbench.leaderboard.table import results_frame

    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder} with a board's records")
    records, problems = read_all(Path(folder))
    for problem in problems:
        warnings.warn(f"{problem}; not counted", stacklevel=2)
    return results_frame(records)


def _as_backbone(
    model: str | Backbone | Run | nn.Module,
    seed: int,
    device: str,
    *,
    input_size: int | None,
    mean: Triple | None,
    std: Triple | None,
) -> Backbone:
    """Return a model of any kind as a backbone on a device; a module on another one is copied."""
    from torch import nn

    from transferbench.backbones.backbone import Backbone

    if isinstance(model, nn.Module):
        said = _said_by(model)
        module = model if _own_device(model) == device else copy.deepcopy(model).to(device)
        return wrap_module(
            module,
            input_size=input_size or said.input_size,
            mean=mean or said.mean,
            std=std or said.std,
            interpolation=said.interpolation,
        )
    if input_size is not None or mean is not None or std is not None:
        raise UserError("input_size, mean and std are for a module; other models have their own")
    if isinstance(model, Run):
        return parse_reference(model.reference, seed=seed).load(device)
    if isinstance(model, str):
        return parse_reference(model, seed=seed).load(device)
    if isinstance(model, Backbone):
        if _own_device(model) == device:
            return model
        return replace(model, module=copy.deepcopy(model.module).to(device))
    raise UserError(
        f"a model is a reference such as 'run:FOLDER', a Backbone, a Run or a torch module, "
        f"not {type(model).__name__}"
    )


def _said_by(module: nn.Module) -> Preprocessing:
    """The preprocessing that a timm model says it was trained for, else ImageNet's at 224."""
    said = getattr(module, "pretrained_cfg", None)
    said = said if isinstance(said, Mapping) else {}
    interpolation = said.get("interpolation")
    return Preprocessing(
        input_size=tuple(said.get("input_size", (3, 224, 224)))[-1],
        mean=said.get("mean", IMAGENET_MEAN),
        std=said.get("std", IMAGENET_STD),
        interpolation=interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
    )


def _own_device(model: Backbone | nn.Module) -> str:
    """Where a module's weights are; the CPU for one that has none."""
    module: Any = getattr(model, "module", model)
    first = next(iter(module.parameters()), None) if hasattr(module, "parameters") else None
    return "cpu" if first is None else str(first.device)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and back into the mode that each part had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
