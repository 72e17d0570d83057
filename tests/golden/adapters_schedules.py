"""Golden cases of schedules: the rates that training would write into a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.golden.harness import golden
from tests.pretrain.conftest import NoiseSource, make_recipe
from transferbench.optim.build import build_optimizer, set_learning_rate
from transferbench.optim.schedules import (
    cosine_momentum,
    label_times,
    learning_rate,
    scaled_rate,
    simclr_steps,
)
from transferbench.optim.settings import OptimizerSettings, ScheduleSettings
from transferbench.pretrain.loop import Trainer
from transferbench.pretrain.recipe import resolve

Inputs = dict[str, Any]


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
@golden("moco-v3/schedule/lr")
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
            # Without a warm-up its start plays no part, and a recipe may not give one.
            "warmup_start": params["start"] / base if params["warmup_epochs"] else 0.0,
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


@golden("moco-v1/schedule/steps")
@golden("pcl-v1/schedule/steps")
def milestones_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    schedule = {
        "name": "step",
        "milestones": tuple(params["milestones"]),
        "gamma": params["gamma"],
    }
    at = inputs["at"].tolist()
    return rates(schedule, params["base"], at, steps_per_epoch=1, epochs=max(at) + 1)


@golden("moco-v2/schedule/cosine")
@golden("pcl-v2/schedule/cosine")
def moco_cosine_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    steps = [7 * epoch + 6 for epoch in inputs["at"].tolist()]
    schedule = {"name": "epoch-cosine"}
    return rates(schedule, params["base"], steps, steps_per_epoch=7, epochs=params["epochs"])


@golden("pirl/schedule/cosine-floor")
def vissl_cosine_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    schedule = {"name": "epoch-cosine", "floor": params["low"] / params["base"]}
    steps = [7 * epoch for epoch in inputs["at"].tolist()]
    return rates(schedule, params["base"], steps, steps_per_epoch=7, epochs=params["epochs"])


@golden("infomin/schedule/cosine-floor")
def pycontrast_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    schedule = {"name": "pycontrast", "floor": params["low"] / params["base"]}
    # The code counts epochs from 1.
    steps = [7 * (epoch - 1) + 6 for epoch in inputs["at"].tolist()]
    return rates(schedule, params["base"], steps, steps_per_epoch=7, epochs=params["epochs"])


@golden("infomin/schedule/warmup")
def pycontrast_warmup_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    base, iters = params["base"], params["iters"]
    schedule = {
        "name": "pycontrast",
        "warmup_epochs": params["warm"],
        "warmup_start": params["start"] / base,
    }
    steps = [(epoch - 1) * iters + i for epoch, i in inputs["at"].tolist()]
    return rates(schedule, base, steps, steps_per_epoch=iters, epochs=params["epochs"])


@golden("moco-v3/schedule/key-momentum")
def key_momentum_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    return [cosine_momentum(params["base"], at, params["total"]) for at in inputs["at"].tolist()]


@golden("mae/schedule/lr")
def mae_schedule_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    peak = scaled_rate(params["blr"], params["batch"])
    schedule = {
        "name": "fractional-cosine",
        "warmup_epochs": params["warmup"],
        "floor": params["min_lr"] / peak,
    }
    fine = 10**9
    steps = [round(at * fine) for at in inputs["fractional_epochs"].tolist()]
    return rates(schedule, peak, steps, steps_per_epoch=fine, epochs=params["epochs"])


def two_groups(optimizer: dict[str, Any], groups: list[dict[str, Any]], batch: int) -> Any:
    """Build what training builds for a method with weights, biases and a predictor."""
    parsed = OptimizerSettings.model_validate(optimizer | {"group": groups})
    named = {
        name: [nn.Parameter(torch.zeros(1))] for name in ("weights", "predictor", "bias-and-norm")
    }
    return build_optimizer(parsed, named, batch_size=batch)


def rates_of_groups(optimizer: Any, schedule: dict[str, Any], step: int, **run: int) -> Any:
    """Return each group's rate in one step, by its name."""
    set_learning_rate(optimizer, ScheduleSettings.model_validate(schedule), step, **run)
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


@golden("barlow-twins/schedule")
def barlow_schedule_case(inputs: Inputs, params: Inputs, key: str) -> list[list[float]]:
    biases = {"name": "bias-and-norm", "base_lr": params["lr_biases"]}
    optimizer = two_groups(
        {"name": "lars", "base_lr": params["lr_weights"]}, [biases], params["batch"]
    )
    schedule = {
        "name": "fractional-cosine",
        "warmup_epochs": params["warmup_epochs"],
        "floor": 0.001,
    }
    run = {"steps_per_epoch": params["iters_per_epoch"], "epochs": params["epochs"]}
    found = [rates_of_groups(optimizer, schedule, at, **run) for at in inputs["steps"].tolist()]
    return [[each["weights"], each["bias-and-norm"]] for each in found]


@golden("simsiam/schedule")
def simsiam_schedule_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, list[float]]:
    predictor = {"name": "predictor", "fixed_lr": True}
    optimizer = two_groups({"name": "sgd", "base_lr": params["base"]}, [predictor], params["batch"])
    run = {"steps_per_epoch": 7, "epochs": params["E"]}
    found = [
        rates_of_groups(optimizer, {"name": "epoch-cosine"}, 7 * epoch + 3, **run)
        for epoch in inputs["epochs"].tolist()
    ]
    return {
        "encoder": [each["weights"] for each in found],
        "predictor": [each["predictor"] for each in found],
    }


@golden("twist/schedule")
def twist_schedule_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    """Ask a trainer for its rates: the second phase begins in its middle."""
    iters, first = params["iters_per_epoch"], params["mme_epochs"]
    batch = 2
    recipe = make_recipe(
        method="simclr-v1",
        settings={},
        views=[{"count": 2, "size": 8}],
        batch_size=batch,
        epochs=params["epochs"],
        optimizer={"name": "larc", "lr": params["lr"]},
        schedule={
            "name": "fractional-cosine",
            "warmup_epochs": params["warmup"],
            "floor": 0.001,
            "epochs": first,
        },
        phases=[
            {
                "from_epoch": first,
                "lr": params["lr_sl"],
                "schedule": {
                    "name": "fractional-cosine",
                    "warmup_epochs": params["sl_warmup"],
                    "floor": 0.001,
                },
            }
        ],
    )
    source = NoiseSource(batch * iters)
    trainer = Trainer(resolve(recipe), source.load(), device="cpu")
    found = []
    for step in inputs["steps"].tolist():
        trainer.step = step
        trainer._enter_phase(step // iters)
        trainer._set_learning_rate(step // iters)
        found.append(trainer.optimizer.param_groups[0]["lr"])
    return found


@golden("sela-v2/schedule/original-label-times")
def label_times_case(inputs: Inputs, params: Inputs, key: str) -> list[float]:
    return label_times(params["epochs"], params["nopts"])
