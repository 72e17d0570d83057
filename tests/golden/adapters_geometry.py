"""Golden cases of the geometry of features."""

from __future__ import annotations

from typing import Any

import torch

from tests.golden.harness import golden
from transferbench.measures import geometry

Inputs = dict[str, Any]


@golden("common/rankme")
def common_rankme_case(inputs: Inputs, params: Inputs, key: str) -> float:
    return geometry.rankme(inputs["z"].double(), eps=params["eps"])


@golden("protocol/stats/rankme")
def rankme_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, float]:
    features = inputs["Z"] * torch.tensor(params["column_scale"], dtype=torch.float64)
    return {"rankme": geometry.rankme(features, eps=params["eps"])}


@golden("protocol/stats/align-uniform")
def align_uniform_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, float]:
    return {
        "alignment": geometry.alignment(inputs["x"], inputs["y"], alpha=params["alpha"]),
        "uniformity_x": geometry.uniformity(inputs["x"], t=params["t"]),
    }


@golden("protocol/stats/linear-cka")
def cka_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, float]:
    return {
        "cka": geometry.linear_cka(inputs["X"], inputs["Y"]),
        "cka_self": geometry.linear_cka(inputs["X"], inputs["X"]),
    }


@golden("protocol/stats/lidar")
def lidar_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, float]:
    views = inputs["noise"] + inputs["centres"].unsqueeze(1)
    return {"lidar": geometry.lidar(views, delta=params["delta"], eps=params["eps"])}


@golden("protocol/stats/logme")
def logme_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, float]:
    score = geometry.logme(inputs["F"], inputs["labels"], classes=params["classes"])
    return {"logme": score}
