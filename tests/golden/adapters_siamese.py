"""Golden adapters of simsiam, barlow-twins, simclr-v2, moco-v3 and mae.

Losses come from the method itself; cases of two processes run on two real ones.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.conformance.pair import run_on_both
from tests.golden import harness
from tests.golden.adapters_methods import Case, batch_info, case_head, last_part, make
from transferbench.methods import barlow_twins
from transferbench.methods import mae as mae_module
from transferbench.methods.barlow_twins import (
    BarlowTwins,
    cross_correlation,
    distances_from_identity,
)
from transferbench.methods.byol import BYOL
from transferbench.methods.mae import (
    MAE,
    kept_patches,
    normalize_patches,
    patchify,
    random_mask,
    unshuffle,
)
from transferbench.methods.moco_v3 import MoCoV3
from transferbench.methods.parts.positions import sincos_positions
from transferbench.methods.simclr_v2 import SimCLRv2, first_layers
from transferbench.methods.simsiam import SimSiam, negative_cosine

golden = partial(harness.golden, whole={"mask", "ids_restore"})


def pair(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], dim=1)


def epsilon_of(module: ModuleType, function: str, epsilon: float) -> AbstractContextManager[Any]:
    """Give a function, as the method in its module calls it, the epsilon of a case."""
    return patch.object(module, function, partial(getattr(module, function), epsilon=epsilon))


# simsiam


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, **settings: Any) -> Tensor:
    embeddings = {"p": pair(p1, p2), "z": pair(z1, z2)}
    loss: Tensor = make(SimSiam, **settings).loss(embeddings, batch_info())
    return loss


@golden("simsiam/loss")
def simsiam_loss_case(inputs: Case, params: Case, key: str) -> Any:
    name = last_part(key)
    if "zero-prediction" in name:
        return negative_cosine(inputs["p"], inputs["z"], params["eps"])
    p1 = inputs["p1"].clone().requires_grad_()
    p2, z1, z2 = inputs["p2"], inputs["z1"], inputs["z2"]
    loss = simsiam_loss(p1, p2, z1, z2)
    if "gradient" in name:
        loss.backward()
        return p1.grad
    if "byol" in name:
        byol = {"predictions": pair(p1, p2), "targets": pair(z1, z2)}
        other = make(BYOL).loss(byol, batch_info())
        assert abs(loss - (other / 4 - 1)) < 1e-9
        return other
    return loss


@golden("simsiam/ablation")
def simsiam_ablation_case(inputs: Case, params: Case, key: str) -> Any:
    """Without a predictor the predictions are the projections."""
    answer = {}
    for name, stop in (("with_stop_gradient", True), ("without", False)):
        z1 = inputs["z1"].clone().requires_grad_()
        z2 = inputs["z2"]
        simsiam_loss(z1, z2, z1, z2, stop_gradient=stop).backward()
        answer[name] = z1.grad
    return answer


@golden("simsiam/predictor")
def simsiam_predictor_case(inputs: Case, params: Case, key: str) -> Any:
    hidden, output = inputs["w1"].shape
    predictor = make(SimSiam, projector_output=output, predictor_hidden=hidden).predictor
    predictor[1].eps = params["eps"]
    predictor[0].weight.data.copy_(inputs["w1"])
    predictor[-1].weight.data.copy_(inputs["w2"])
    predictor[-1].bias.data.copy_(inputs["b2"])
    return predictor(inputs["x"])


@golden("simsiam/projector")
def simsiam_projector_case(inputs: Case, params: Case, key: str) -> Any:
    output, hidden = inputs["w"].shape
    projector = make(SimSiam, projector_hidden=hidden, projector_output=output).projector
    linear, norm = projector[-2:]
    norm.eps = params["eps"]
    linear.weight.data.copy_(inputs["w"])
    linear.bias.data.copy_(inputs["bias"])
    return norm(linear(inputs["x"]))


@golden("simsiam/monitor")
def simsiam_monitor_case(inputs: Case, params: Case, key: str) -> Any:
    z = inputs["z"]
    method = make(SimSiam)
    method.loss({"p": pair(z, z), "z": pair(z, z)}, batch_info())
    healthy = 1 / math.sqrt(z.shape[1])
    return {"std": method.logged["output_spread"] * healthy, "healthy_value": healthy}


# barlow-twins


def barlow_loss(z1: Tensor, z2: Tensor, weight: float, epsilon: float) -> Tensor:
    sizes = {"projector_hidden": 2, "projector_output": 2}
    method = make(BarlowTwins, off_diagonal_weight=weight, **sizes)
    with epsilon_of(barlow_twins, "cross_correlation", epsilon):
        loss: Tensor = method.loss({"z": pair(z1, z2)}, batch_info())
    return loss


def barlow_value(c: Tensor, weight: float) -> Tensor:
    invariance, redundancy = distances_from_identity(c)
    return invariance + weight * redundancy


@golden("barlow-twins/correlation")
def barlow_correlation_case(inputs: Case, params: Case, key: str) -> Any:
    return cross_correlation(inputs["z1"], inputs["z2"], params["eps"])


@golden("barlow-twins/loss")
def barlow_loss_case(inputs: Case, params: Case, key: str) -> Any:
    name, weight = last_part(key), params["lambda"]
    z1, z2 = inputs["z1"].clone().requires_grad_(), inputs["z2"]
    if "pseudo-code" in name:
        # The unbiased deviation without epsilon, the mean over N: as the docstring says.
        c = cross_correlation(z1, z2, 0.0) * (len(z1) - 1) / len(z1)
        return {"loss": barlow_value(c, weight), "C_00": c[0, 0]}
    if "two-processes" in name:
        halves = list(zip(z1.detach().chunk(2), z2.chunk(2), strict=True))
        losses = run_on_both(barlow_loss, [(*half, weight, params["eps"]) for half in halves])
        assert losses[0] == losses[1]
        alone = sum(cross_correlation(*half, params["eps"]) for half in halves) / len(halves)
        assert isinstance(alone, Tensor)
        return {"loss": losses[0], "local_statistics": barlow_value(alone, weight)}
    loss = barlow_loss(z1, z2, weight, params["eps"])
    if "gradient" in name:
        loss.backward()
        return z1.grad
    if "constant-column" in name:
        return {"loss": loss, "C_row0": cross_correlation(z1, z2, params["eps"])[0]}
    return loss


def barlow_start(images: int, width: int, weight: float) -> float:
    """The expected loss of independent views: a sample correlation has variance 1 / (N - 1)."""
    chance = width / (images - 1)
    return width + chance + weight * (width - 1) * chance


@golden("barlow-twins/start")
def barlow_start_case(inputs: Case, params: Case, key: str) -> Any:
    return barlow_start(params["N"], params["D"], params["lambda"])


# simclr-v2


@golden("simclr-v2/loss")
def simclr_v2_loss_case(inputs: Case, params: Case, key: str) -> Any:
    z = inputs["z"].clone().requires_grad_()
    method = make(SimCLRv2, temperature=params["T"])
    loss = method.loss({"z": pair(*z.chunk(2))}, batch_info())
    if "gradient" in last_part(key):
        loss.backward()
        return z.grad
    return loss


@golden("simclr-v2/head")
def simclr_v2_head_case(inputs: Case, params: Case, key: str) -> Any:
    head = case_head(inputs, SimCLRv2)
    return [head(inputs["h"]), first_layers(head, 1)(inputs["h"])]


@golden("simclr-v2/memory")
def simclr_v2_memory_case(inputs: Case, params: Case, key: str) -> Any:
    queries = pair(inputs["q1"], inputs["q2"]).requires_grad_()
    method = make(SimCLRv2, temperature=params["T"], memory_size=4)
    method.memory = inputs["queue"]
    embeddings = {"z": queries, "keys": pair(inputs["k1"], inputs["k2"])}
    loss = method.loss(embeddings, batch_info())
    if "gradient" in last_part(key):
        loss.backward()
        assert queries.grad is not None
        return queries.grad[:, 0]
    return loss


# moco-v3


def moco_v3_loss(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float) -> Tensor:
    method = make(MoCoV3, temperature=temperature)
    embeddings = {"queries": pair(q1, q2), "keys": pair(k1, k2)}
    loss: Tensor = method.loss(embeddings, batch_info())
    return loss


@golden("moco-v3/start")
@golden("moco-v3/loss")
def moco_v3_loss_case(inputs: Case, params: Case, key: str) -> Any:
    name, temperature = last_part(key), params["T"]
    q1, q2, k1, k2 = (inputs[part] for part in ("q1", "q2", "k1", "k2"))
    if "two-processes" in name:
        halves = zip(*(part.chunk(2) for part in (q1, q2, k1, k2)), strict=True)
        losses = run_on_both(moco_v3_loss, [(*half, temperature) for half in halves])
        return [*losses, sum(losses) / 2]
    q1 = q1.clone().requires_grad_()
    loss = moco_v3_loss(q1, q2, k1, k2, temperature)
    if "gradient" in name:
        loss.backward()
        return q1.grad
    return loss


@golden("moco-v3/vit/sincos-positions")
def moco_v3_positions_case(inputs: Case, params: Case, key: str) -> Any:
    # The code lets the slow index run over the width; on a square it is the row.
    return sincos_positions(
        params["w"],
        params["h"],
        params["dim"],
        first="row",
        temperature=params["temperature"],
    )


# mae


@golden("mae/patchify")
def patchify_case(inputs: Case, params: Case, key: str) -> Any:
    return patchify(inputs["images"], (params["patch"],) * 2)[0]


@golden("mae/target")
def mae_target_case(inputs: Case, params: Case, key: str) -> Any:
    targets = normalize_patches(patchify(inputs["images"], (params["patch"],) * 2), params["eps"])
    return targets[0, 0] if "constant" in last_part(key) else targets[1, 3]


@golden("mae/loss")
def mae_loss_case(inputs: Case, params: Case, key: str) -> Any:
    predictions = inputs["pred"].clone().requires_grad_()
    method = mae(normalize_targets="plain" not in last_part(key))
    embeddings = {
        "predictions": predictions,
        "patches": patchify(inputs["images"], (params["patch"],) * 2),
        "hidden": inputs["mask"],
    }
    # Plain pixels need none.
    with epsilon_of(mae_module, "normalize_patches", params.get("eps", 1e-6)):
        loss = method.loss(embeddings, batch_info())
    if "gradient" not in last_part(key):
        return loss
    loss.backward()
    assert predictions.grad is not None
    rows = {
        f"image{image}_patch{patch}": row
        for image, patches in enumerate(predictions.grad)
        for patch, row in enumerate(patches)
    }
    return {"norm": predictions.grad.norm(), "gradient": predictions.grad, **rows}


def mae(**settings: Any) -> MAE:
    from tests.conformance.bed import build

    method = build("mae", dtype=torch.float64, **settings)
    assert isinstance(method, MAE)
    return method


@golden("mae/mask/from-noise")
def mask_case(inputs: Case, params: Case, key: str) -> Any:
    keep, restore, hidden = random_mask(inputs["noise"], params["ratio"])
    return {"ids_keep": keep, "ids_restore": restore, "mask": hidden.long()}


@golden("mae/mask/keep-count")
def keep_count_case(inputs: Case, params: Case, key: str) -> Any:
    return [kept_patches(int(patches), ratio) for patches, ratio in inputs["cases"].tolist()]


@golden("mae/decoder/unshuffle")
def unshuffle_case(inputs: Case, params: Case, key: str) -> Any:
    kept, restore = inputs["kept"], inputs["ids_restore"]
    return unshuffle(kept[None], inputs["mask_token"], restore[None])[0]


@golden("mae/position/sin-cos-2d")
def mae_positions_case(inputs: Case, params: Case, key: str) -> Any:
    side, prefix = params["grid"], int(params["class_token"])
    return sincos_positions(side, side, params["dim"], first="column", prefix=prefix)
