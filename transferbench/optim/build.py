"""From settings to a torch optimizer, and from a schedule to its rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from transferbench.errors import unknown
from transferbench.optim.lars import LARS
from transferbench.optim.schedules import learning_rate, scaled_rate
from transferbench.optim.settings import (
    OPTIMIZER_KEYS,
    GroupSettings,
    OptimizerSettings,
    ScheduleSettings,
)
from transferbench.optim.switching import AdamThenSGD


def peak_rate(settings: OptimizerSettings, batch_size: int, group: GroupSettings | None) -> float:
    """Return a group's rate before the schedule, scaled where it is given per 256 images."""
    if group is not None and group.lr is not None:
        return group.lr
    if group is not None and group.base_lr is not None:
        return scaled_rate(group.base_lr, batch_size, settings.lr_scaling or "linear")
    if settings.lr is not None:
        return settings.lr
    assert settings.base_lr is not None  # the settings hold exactly one
    return scaled_rate(settings.base_lr, batch_size, settings.lr_scaling or "linear")


def build_optimizer(
    settings: OptimizerSettings,
    groups: Mapping[str, Sequence[nn.Parameter]],
    *,
    batch_size: int,
) -> Optimizer:
    """Build the optimizer over a method's named groups of parameters.

    Parameters
    ----------
    settings : OptimizerSettings
        Its `group` entries address `groups` by name.
    groups : mapping of str to parameters
        Every trained parameter in exactly one; empty groups are left out.
    batch_size : int
        Images in one optimizer step, over all processes.

    Returns
    -------
    Optimizer
        Each of its `param_groups` also holds `name`, `peak_lr` and `fixed_lr`, which
        `set_learning_rate` reads.

    Raises
    ------
    UserError
        If the settings name a group that the method does not have.
    """
    exceptions = {group.name: group for group in settings.group}
    for name in exceptions:
        if name not in groups:
            raise unknown("parameter group", name, groups, "[[optimizer.group]]")
    torch_groups: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        if not parameters:
            continue
        own = exceptions.get(name)
        decay = own.weight_decay if own is not None else None
        peak = peak_rate(settings, batch_size, own)
        torch_group: dict[str, Any] = {
            "params": list(parameters),
            "name": name,
            "lr": peak,
            "peak_lr": peak,
            "fixed_lr": own is not None and own.fixed_lr,
            "weight_decay": settings.weight_decay if decay is None else decay,
        }
        if settings.name in ("lars", "larc"):
            torch_group["adapt"] = own is None or own.adapt
        torch_groups.append(torch_group)
    return _optimizer(settings, torch_groups)


def _optimizer(settings: OptimizerSettings, groups: list[dict[str, Any]]) -> Optimizer:
    options = {key: getattr(settings, key) for key in OPTIMIZER_KEYS[settings.name]}
    options["lr"] = groups[0]["lr"]
    match settings.name:
        case "sgd":
            return torch.optim.SGD(groups, **options)
        case "lars":
            return LARS(groups, norms="joint", **options)
        case "larc":
            return LARS(groups, norms="separate", **options)
        case "adam":
            return torch.optim.Adam(groups, **options)
        case "adamw":
            return torch.optim.AdamW(groups, **options)
        case "adagrad":
            return torch.optim.Adagrad(groups, **options)
        case "rmsprop":
            return torch.optim.RMSprop(groups, **options)
        case "adam-then-sgd":
            return AdamThenSGD(groups, **options)


def set_learning_rate(
    optimizer: Optimizer,
    schedule: ScheduleSettings,
    step: int,
    *,
    steps_per_epoch: int,
    epochs: int,
    num_images: int | None = None,
    batch_size: int | None = None,
) -> float:
    """Write the rate of the coming step into every group; return the first group's.

    A group with a fixed rate keeps its peak. The arguments are those of `schedules.learning_rate`.
    """
    factor = 1.0
    if isinstance(optimizer, AdamThenSGD):
        factor = optimizer.begin_step(steps_per_epoch)
    for group in optimizer.param_groups:
        rate = group["peak_lr"]
        if not group["fixed_lr"]:
            rate = learning_rate(
                schedule,
                rate,
                step,
                steps_per_epoch=steps_per_epoch,
                epochs=epochs,
                num_images=num_images,
                batch_size=batch_size,
            )
        group["lr"] = rate * factor
    return float(optimizer.param_groups[0]["lr"])
