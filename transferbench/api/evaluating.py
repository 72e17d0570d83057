"""One model on one data set, and records as a frame."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from transferbench.api.machine import choose_device, find_root
from transferbench.backbones.borrowing import (
    bare,
    copied,
    in_evaluation_mode,
    is_on,
    own_device,
    random_state_kept,
)
from transferbench.backbones.reference import as_published, parse_reference
from transferbench.backbones.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Interpolation,
    Preprocessing,
)
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
    interpolation: Interpolation | None = None,
    data_root: str | Path | None = None,
    skip_corrupt: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Evaluate one model on one data set; nothing but the cache is written.

    A module may be in the middle of its training: its modes, values, statistics and gradients, and
    the random state of Python, numpy and torch, are afterwards what they were, also if the
    evaluation fails. Its features are computed at every call, for its weights change, and none are
    kept.

    Parameters
    ----------
    model : reference, Backbone, Run or nn.Module
        A module turns normalised images (B, 3, S, S) into features (B, D). What wraps it for
        training (DistributedDataParallel, `torch.compile`) is passed by.
    dataset : str or Dataset
        A name, `folder:PATH`, or a loaded data set.
    protocol : str
        A registered protocol.
    parameters : mapping, optional
        The protocol's parameters.
    seed : int
        Of all chance in the evaluation.
    device : str, optional
        Default: a module's own, else CUDA where present. On another one than its own, a copy of
        the module is evaluated.
    input_size, mean, std, interpolation : optional
        For a module: side of its input in pixels, the normalisation per RGB channel, and the
        filter of the resize, "bilinear" or "bicubic". Default: what a timm model says of itself,
        else 224, ImageNet's and "bicubic".

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
    with ExitStack() as around:
        around.enter_context(random_state_kept())
        backbone, where, borrowed = _as_backbone(
            model,
            seed,
            device,
            task.as_published,
            {"input_size": input_size, "mean": mean, "std": std, "interpolation": interpolation},
        )
        if isinstance(source, Dataset):
            loaded = source
        else:
            wanted = Wanted(backbone.input_size, backbone.interpolation)
            loaded = source.load(skip_corrupt=skip_corrupt, progress=progress, wanted=wanted)
        if "test" not in loaded.splits:
            raise UserError(f"the data set '{loaded.name}' has no test split to evaluate on")
        if borrowed:
            around.enter_context(in_evaluation_mode(backbone.module))
        # Who calls may have switched gradients off, which some protocols need.
        import torch

        around.enter_context(torch.inference_mode(False))
        around.enter_context(torch.enable_grad())
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
    device: str | None,
    published: bool,
    given: Mapping[str, Any],
) -> tuple[Backbone, str, bool]:
    """Return a model of any kind as a backbone, its device, and whether its module is the user's.

    A module that is to be on another device than its own is copied.
    """
    from torch import nn

    from transferbench.backbones.backbone import Backbone

    said = {key: value for key, value in given.items() if value is not None}
    if said and not isinstance(model, nn.Module):
        raise UserError(f"{', '.join(given)} are for a module; other models have their own")
    if isinstance(model, str | Run):
        reference = parse_reference(model if isinstance(model, str) else model.reference, seed=seed)
        if published:
            reference = as_published(reference)
        where = choose_device(device)
        return reference.load(where), where, False
    if not isinstance(model, nn.Module | Backbone):
        raise UserError(
            f"a model is a reference such as 'run:FOLDER', a Backbone, a Run or a torch module, "
            f"not {type(model).__name__}"
        )
    module = bare(model.module if isinstance(model, Backbone) else model)
    where = choose_device(device or own_device(module))
    borrowed = is_on(module, where)
    if not borrowed:
        module = copied(module, where)
    if isinstance(model, Backbone):
        return replace(model, module=module), where, borrowed
    try:
        preprocessing = Preprocessing.model_validate({**_said_by(bare(model)).model_dump(), **said})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return wrap_module(module, **preprocessing.model_dump()), where, borrowed


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
