"""Golden cases of optimizers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from tests.golden import harness
from transferbench.optim.build import build_optimizer
from transferbench.optim.settings import OptimizerSettings

Inputs = dict[str, Any]

golden = partial(harness.golden, whole=frozenset())


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
    numbers = [k[len(prefix) :] for k in inputs if k.startswith(prefix)]
    return [inputs[prefix + n] for n in sorted(filter(str.isdigit, numbers), key=int)]


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


@golden("mae/optimiser")
def mae_optimizer_case(inputs: Inputs, params: Inputs, key: str) -> list[Tensor]:
    settings = {
        "name": "adamw",
        "betas": (params["beta1"], params["beta2"]),
        "eps": params["eps"],
        "weight_decay": params["weight_decay"],
    }
    grads = numbered(inputs, "g")
    return run_steps(settings, inputs["w"], grads, [params["lr"]] * len(grads))


@golden("barlow-twins/optimiser")
def barlow_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, Any]:
    settings = lars_settings(params)
    grads, bias_grads = numbered(inputs, "g"), numbered(inputs, "gb")
    return {
        "w": run_steps(settings, inputs["w"], grads, [params["lr_w"]] * len(grads)),
        "bias": run_steps(
            settings,
            inputs["bias"],
            bias_grads,
            [params["lr_b"]] * len(bias_grads),
            excluded=True,
        ),
    }


@golden("simsiam/optimiser")
def simsiam_optimizer_case(inputs: Inputs, params: Inputs, key: str) -> list[Tensor]:
    settings = {
        "name": "sgd",
        "momentum": params["momentum"],
        "weight_decay": params["weight_decay"],
    }
    grads = numbered(inputs, "g")
    return run_steps(settings, inputs["gamma"], grads, [params["lr"]] * len(grads))


@golden("twist/optimiser")
def twist_optimizer_case(inputs: Inputs, params: Inputs, key: str) -> list[Tensor]:
    settings = {
        "name": "larc",
        "lr_inside": True,
        "eps": 0.0,
        "eta": params["eta"],
        "momentum": params["momentum"],
        "weight_decay": params["weight_decay"],
    }
    return run_steps(settings, inputs["w"], numbered(inputs, "g"), params["lr"])
