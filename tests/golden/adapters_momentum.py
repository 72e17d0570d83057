"""Golden adapters of moco-v1, moco-v2, pcl-v1 and pcl-v2: embeddings, losses and hooks of the
methods themselves. Shuffled batch norm runs on two real processes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.conformance.pair import RANKS, run_on_both
from tests.golden import harness
from tests.golden.adapters_methods import batch_info, last_part, make
from transferbench.methods.method import Method
from transferbench.methods.moco_v1 import MoCoV1
from transferbench.methods.moco_v2 import MoCoV2
from transferbench.methods.parts.kmeans import lloyd
from transferbench.methods.parts.prototypes import (
    Clustering,
    concentration,
    describe,
    halve_duplicates,
    prototype_contrast,
)
from transferbench.methods.parts.shuffle import encode_in_order, split_batch_norm
from transferbench.methods.pcl_v1 import PCLv1
from transferbench.methods.pcl_v2 import PCLv2

Case = dict[str, Any]
golden = partial(harness.golden, whole={"pos", "neg", "perm", "assign"})
KINDS: dict[str, type[Method]] = {
    "moco-v1": MoCoV1,
    "moco-v2": MoCoV2,
    "pcl-v1": PCLv1,
    "pcl-v2": PCLv2,
}


def bare(key: str, **settings: Any) -> Any:
    """The method that a key begins with; its networks hand on what they are given."""
    kind = KINDS[key.partition("/")[0]]
    clusters = {"clusters": (2,), "warmup_epochs": 0} if "pcl" in key else {}
    method = make(kind, queue_size=4, batch_norm_groups=1, **clusters, **settings)
    for part in (method, method.key_encoder):
        part.backbone, part.projector = nn.Identity(), nn.Identity()
    return method


def fill_queue(method: Any, rows: Tensor, pointer: int = 0) -> None:
    method.queue.rows = rows.clone()
    method.queue.pointer = torch.tensor(pointer)


# moco-v1, moco-v2


@golden("moco-v1/start/all-keys-equal")
@golden("moco-v1/loss")
@golden("moco-v2/loss")
def contrast_case(inputs: Case, params: Case, key: str) -> Any:
    method = bare(key, temperature=params["T"])
    fill_queue(method, inputs["queue"])
    x = inputs["x" if "x" in inputs else "q"].clone().requires_grad_()
    loss = method((x, inputs["k"]), batch_info())
    if "gradient" in last_part(key):
        loss.backward()
        return x.grad
    return loss


@golden("moco-v1/queue")
@golden("moco-v2/queue")
def enqueue_case(inputs: Case, params: Case, key: str) -> Any:
    method, keys = bare(key), inputs["keys"]
    fill_queue(method, inputs["queue"], params["ptr"])
    method.after_step({"k": keys if "moco-v1" in key else keys[:, None]}, batch_info())
    return [method.queue.rows, method.queue.pointer]


@golden("moco-v1/ema")
@golden("moco-v2/ema")
def key_encoder_case(inputs: Case, params: Case, key: str) -> Any:
    method = bare(key, momentum=params["m"])
    for part, theta in ((method, "theta_q"), (method.key_encoder, "theta_k")):
        part.backbone = nn.ParameterList([nn.Parameter(inputs[theta].clone())])
    steps = []
    for step in range(2):
        method.before_step(batch_info(step))
        steps.append(method.key_encoder.backbone[0].detach().clone())
    return steps


@golden("moco-v1/shuffle-bn")
def shuffle_case(inputs: Case, params: Case, key: str) -> Any:
    assert params["world"] == RANKS
    halves = inputs["x"].chunk(RANKS)
    replies = run_on_both(
        normalize_shuffled, [(half, inputs["perm"], params["eps"]) for half in halves]
    )
    return torch.cat(replies)


def normalize_shuffled(x: Tensor, order: Tensor, eps: float) -> Tensor:
    norm = nn.BatchNorm1d(x.shape[1], eps=eps, affine=False).double()
    return encode_in_order(norm, x, order)


@golden("moco-v1/split-bn")
def split_case(inputs: Case, params: Case, key: str) -> Any:
    norm = nn.BatchNorm1d(inputs["x"].shape[1], eps=params["eps"], affine=False).double()
    return split_batch_norm(norm, params["splits"])(inputs["x"])


@golden("moco-v2/symmetric")
def symmetric_case(inputs: Case, params: Case, key: str) -> Any:
    method = bare(key, temperature=params["T"], symmetric=True)
    fill_queue(method, inputs["queue"], params["ptr"])
    embeddings = {
        name: torch.stack([inputs[f"{name}1"], inputs[f"{name}2"]], dim=1) for name in ("q", "k")
    }
    loss = method.loss(embeddings, batch_info())
    method.after_step(embeddings, batch_info())
    return [loss, method.queue.rows, method.queue.pointer]


def equal_encoders_start(keys: int, width: int, temperature: float) -> float:
    """The expected loss of a query that equals its key, against K random unit rows."""
    spread = 1 / (2 * width * temperature**2)
    return math.log1p(keys * math.exp(spread - 1 / temperature))


@golden("moco-v2/start")
def start_case(inputs: Case, params: Case, key: str) -> Any:
    return equal_encoders_start(params["K"], params["D"], params["T"])


# pcl-v1, pcl-v2


@golden("pcl-v1/proto")
@golden("pcl-v2/proto")
def prototype_case(inputs: Case, params: Case, key: str) -> Any:
    q = inputs["q"].clone().requires_grad_()
    loss, _ = prototype_contrast(
        q, inputs["centroids"], inputs["phi"], inputs["pos"], inputs["neg"]
    )
    if "gradient" in last_part(key):
        loss.backward()
        return q.grad
    return loss


@golden("pcl-v1/phi")
@golden("pcl-v2/phi")
def concentration_case(inputs: Case, params: Case, key: str) -> Any:
    return concentration(
        inputs["sq_dist"],
        inputs["assign"],
        params["k"],
        alpha=params["alpha"],
        temperature=params["tau"],
    )


@golden("pcl-v1/kmeans")
@golden("pcl-v2/kmeans")
def kmeans_case(inputs: Case, params: Case, key: str) -> Any:
    centroids, _ = lloyd(inputs["x"], inputs["init"], params["steps"])
    return describe(inputs["x"], centroids)


@golden("pcl-v1/features/duplicate-rows")
def duplicates_case(inputs: Case, params: Case, key: str) -> Any:
    return halve_duplicates(inputs["x"])


@golden("pcl-v1/total")
@golden("pcl-v2/total")
def total_case(inputs: Case, params: Case, key: str) -> Any:
    """The clusterings and negatives of the case in place of those of an epoch."""
    q, images = inputs["q"], len(inputs["q"])
    method = bare(key, temperature=params["T"])
    fill_queue(method, inputs["queue"])
    count = sum(name.startswith("pos") for name in inputs)
    method.prototypes.clusterings = nn.ModuleList(
        given_clustering(
            images,
            inputs[f"c{m}"],
            inputs.get(f"phi{m}"),
            inputs[f"pos{m}"],
            inputs[f"neg{m}"],
            params["T"],
        )
        for m in range(1, count + 1)
    )
    batch = replace(batch_info(), indices=torch.arange(images))
    return method((q, inputs["k"]), batch)


def given_clustering(
    images: int,
    centroids: Tensor,
    phi: Tensor | None,
    positives: Tensor,
    negatives: Tensor,
    temperature: float,
) -> Clustering:
    clusters, width = centroids.shape
    clustering = Clustering(images, clusters, width, temperature).double()
    clustering.prototypes = centroids
    clustering.assignments = positives
    if phi is not None:
        clustering.concentrations = phi
    clustering.negatives = lambda *_: negatives  # type: ignore[method-assign]
    return clustering
