"""Golden cases of optimizers and schedules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.golden.harness import golden
from transferbench.optim.build import build_optimizer, set_learning_rate
from transferbench.optim.schedules import (
    cosine_momentum,
    learning_rate,
    scaled_rate,
    simclr_steps,
)
from transferbench.optim.settings import OptimizerSettings, ScheduleSettings

Inputs = dict[str, Any]


def run_steps(
    settings: dict[str, Any], weight: Tensor, grads: Any, lrs: Any, *, excluded: bool = False
) -> list[Tensor]:
    """Step the optimizer that training would build; return the weights after each step."""
    exceptions = {"weight_decay": 0.0}
    if settings["name"] in ("lars", "larc"):
        exceptions["adapt"] = False
    groups = [{"name": "bias-and-norm"} | exceptions]
    parsed = OptimizerSettings.model_validate(settings | {"lr": 1.0, "group": groups})
    parameter = nn.Parameter(weight.clone())
    named: dict[str, list[nn.Parameter]] = {
        "weights": [] if excluded else [parameter],
        "bias-and-norm": [parameter] if excluded else [],
    }
    optimizer = build_optimizer(parsed, named, batch_size=256)
    after = []
    for lr, grad in zip(lrs, grads, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = grad.clone()
        optimizer.step()
        after.append(parameter.detach().clone())
    return after


def numbered(inputs: Inputs, prefix: str) -> list[Tensor]:
    """Return inputs g1, g2, ... in order."""
    found = sorted(k for k in inputs if k.startswith(prefix) and k[len(prefix) :].isdigit())
    return [inputs[k] for k in found]


def lars_settings(params: Inputs) -> dict[str, Any]:
    common = {
        "momentum": params["momentum"],
        "eta": params["eta"],
        "weight_decay": params.get("wd", params.get("weight_decay")),
    }
    kinds = {
        "torch": {"name": "lars"},
        "tf": {"name": "lars", "lr_inside": True},
        "clip": {"name": "larc", "clip": True},
    }
    return common | kinds[params.get("variant", "torch")]


@golden("common/lars")
@golden("simclr-v1/lars")
@golden("simclr-v2/lars")
@golden("moco-v3/lars")
def lars_case(inputs: Inputs, params: Inputs, key: str) -> list[Tensor]:
    return run_steps(
        lars_settings(params),
        inputs["w"],
        inputs["grads"],
        params["lrs"],
        excluded=bool(params.get("skip")),
    )


@golden("byol/optimiser")
def byol_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, Any]:
    settings = lars_settings(params)
    grads, bias_grads = numbered(inputs, "g"), numbered(inputs, "gb")
    lrs = [params["lr"]] * len(grads)
    return {
        "w": run_steps(settings, inputs["w"], grads, lrs),
        "bias": run_steps(settings, inputs["bias"], bias_grads, lrs, excluded=True),
        "w_zero": run_steps(settings, inputs["w_zero"], [inputs["gz"]], lrs[:1])[0],
    }


@golden("swav/optimiser")
def swav_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, Any]:
    settings = {
        "name": "larc",
        "eta": params["trust"],
        "eps": params["eps"],
        "momentum": params["momentum"],
        "weight_decay": params["weight_decay"],
    }
    grads, bias_grads = numbered(inputs, "g"), numbered(inputs, "gb")
    lrs = [params["lr"]] * len(grads)
    return {
        "w": run_steps(settings, inputs["w"], grads, lrs),
        "bias": run_steps(settings, inputs["bias"], bias_grads, lrs),
    }


@golden("common/sgd")
@golden("supervised/optimiser")
def sgd_case(inputs: Inputs, params: Inputs, key: str) -> list[Tensor]:
    settings = {
        "name": "sgd",
        "momentum": params["momentum"],
        "weight_decay": params.get("wd", params.get("weight_decay")),
        "nesterov": params.get("nesterov", False),
    }
    grads = inputs["grads"] if "grads" in inputs else numbered(inputs, "g")
    return run_steps(settings, inputs["w"], grads, [params["lr"]] * len(grads))


@golden("common/adamw")
def adamw_case(inputs: Inputs, params: Inputs, key: str) -> list[Tensor]:
    settings = {
        "name": "adamw",
        "betas": (params["b1"], params["b2"]),
        "eps": params["eps"],
        "weight_decay": params["wd"],
    }
    return run_steps(settings, inputs["w"], inputs["grads"], [params["lr"]] * len(inputs["grads"]))


def rates(schedule: dict[str, Any], base: float, steps: Any, **run: int) -> list[float]:
    """Return the rates that training would write into a group, and that the pure rule gives."""
    settings = ScheduleSettings.model_validate(schedule)
    optimizer = build_optimizer(
        OptimizerSettings(name="sgd", lr=base),
        {"weights": [nn.Parameter(torch.zeros(1))]},
        batch_size=256,
    )
    written = [set_learning_rate(optimizer, settings, step, **run) for step in steps]
    assert written == [learning_rate(settings, base, step, **run) for step in steps]
    return written


@golden("common/schedule/epoch-fraction")
def epoch_fraction_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    schedule = {"name": "fractional-cosine", "warmup_epochs": params["warmup"]}
    # So many steps an epoch that the fractions asked for are whole steps.
    fine = 10**9
    steps = [round(at * fine) for at in inputs["at"].tolist()]
    return rates(schedule, params["peak"], steps, steps_per_epoch=fine, epochs=params["epochs"])


@golden("common/schedule/floor")
def floor_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    schedule = {
        "name": "fractional-cosine",
        "warmup_epochs": params["warmup"],
        "floor": params["floor"],
    }
    steps = inputs["steps"].tolist()
    return rates(schedule, params["peak"], steps, steps_per_epoch=1, epochs=params["total"])


@golden("common/schedule/tau")
def tau_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    return [cosine_momentum(params["base"], at, params["total"]) for at in inputs["at"].tolist()]


@golden("simclr-v1/schedule")
@golden("simclr-v2/schedule")
def simclr_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, Any]:
    n, batch, epochs = params["n"], params["batch"], params["epochs"]
    warmup, total = simclr_steps(n, batch, epochs, params["warmup_epochs"])
    lr = rates(
        {"name": "cosine", "warmup_epochs": params["warmup_epochs"]},
        scaled_rate(params["base"], batch, params["scaling"]),
        inputs["steps"].tolist(),
        steps_per_epoch=n // batch,
        epochs=epochs,
        num_images=n,
        batch_size=batch,
    )
    return {"warmup_steps": warmup, "total_steps": total, "lr": lr}


@golden("byol/schedule")
def byol_schedule_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    return rates(
        {"name": "fractional-cosine", "warmup_epochs": params["warm"]},
        scaled_rate(params["base"], params["batch"]),
        inputs["steps"].tolist(),
        steps_per_epoch=1,
        epochs=params["total"],
    )


@golden("swav/schedule")
def swav_schedule_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    base = params["base"]
    return rates(
        {
            "name": "swav",
            "warmup_epochs": params["warmup_epochs"],
            "warmup_start": params["start"] / base,
            "floor": params["final"] / base,
        },
        base,
        inputs["steps"].tolist(),
        steps_per_epoch=params["iters_per_epoch"],
        epochs=params["epochs"],
    )


@golden("supervised/schedule/step")
def step_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    schedule = {"name": "step", "every": params["step"], "gamma": params["gamma"]}
    at = inputs["epochs"].tolist()
    return rates(schedule, params["base_lr"], at, steps_per_epoch=1, epochs=max(at) + 1)


@golden("supervised/schedule/cosine-per-epoch")
def cosine_per_epoch_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    # Several steps an epoch: the rate must not move inside one.
    steps = [7 * epoch + 6 for epoch in inputs["epochs"].tolist()]
    schedule = {"name": "epoch-cosine"}
    return rates(schedule, params["base_lr"], steps, steps_per_epoch=7, epochs=params["T"])


@golden("protocol/schedule/finetune-cosine")
def finetune_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, list[float]]:
    schedule = {"name": "fractional-cosine"}
    lr = rates(schedule, params["lr0"], params["steps"], steps_per_epoch=1, epochs=params["T"])
    return {"lr": lr}
