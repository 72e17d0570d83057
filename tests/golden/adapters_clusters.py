"""Golden adapters of the methods that learn classes: losses come from the methods themselves.

Cases of two processes run on two real ones (gloo), through the same collectives as training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.conformance.pair import run_on_both
from tests.golden.harness import golden
from transferbench.methods.deepcluster_v2 import DeepClusterV2
from transferbench.methods.method import BatchInfo, Context, Method
from transferbench.methods.parts.cluster_labels import MISSING
from transferbench.methods.parts.sinkhorn import sinkhorn
from transferbench.methods.parts.spherical_kmeans import spherical_kmeans
from transferbench.methods.parts.transport import balanced_transport
from transferbench.methods.sela_v2 import SeLaV2

Case = dict[str, Any]


class Nothing(nn.Module):
    """A backbone that is never run."""

    num_features = 2


def make(
    method: type[Method],
    *,
    batch: int,
    views: int = 2,
    steps_per_epoch: int = 50,
    images: int | None = None,
    **settings: Any,
) -> Any:
    """Build a method in float64 whose networks stay unused; an epoch has whole batches alone."""
    context = Context(
        num_images=images or batch * steps_per_epoch,
        num_classes=None,
        view_sizes=(16,) * views,
        batch_size=batch,
        total_steps=steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        epochs=1,
    )
    return method(method.Settings(**settings), Nothing(), context).double()


def batch_info(indices: Tensor, step: int = 0, steps_per_epoch: int = 50) -> BatchInfo:
    return BatchInfo(
        indices=indices,
        labels=None,
        step=step,
        total_steps=steps_per_epoch,
        epoch=step // steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        generator=torch.Generator(),
    )


def last_part(key: str) -> str:
    return key.rsplit("/", 1)[-1]


def numbered(inputs: Case, prefix: str) -> list[Tensor]:
    """Inputs of one prefix in the order of their names: c0, c1, ..."""
    return [inputs[name] for name in sorted(inputs) if name.startswith(prefix)]


# deepcluster-v2


@golden("deepcluster-v2/kmeans")
def kmeans_case(inputs: Case, params: Case, key: str) -> Any:
    bank, iterations = inputs["bank"], params["iterations"]
    start = bank[inputs["init_rows"]] if "init_rows" in inputs else inputs["init"]
    if "rank0_rows" in params:
        first, second = bank[: params["rank0_rows"]], bank[params["rank0_rows"] :]
        # What the second process would start from plays no part.
        arguments = [(first, start, iterations), (second, torch.zeros_like(start), iterations)]
        replies = run_on_both(spherical_kmeans, arguments)
        assert torch.equal(replies[0][0], replies[1][0])
        return {
            "centroids": replies[0][0],
            "assignments_rank0": replies[0][1],
            "assignments_rank1": replies[1][1],
        }
    centroids, assignments = spherical_kmeans(bank, start, iterations)
    counts = torch.bincount(assignments, minlength=len(start))
    return {"centroids": centroids, "assignments": assignments, "counts": counts}


@golden("deepcluster-v2/loss")
def deepcluster_loss_case(inputs: Case, params: Case, key: str) -> Any:
    prototypes, labels = numbered(inputs, "c"), numbered(inputs, "y")
    names = sorted(name for name in inputs if name.startswith("z"))
    leaves = [inputs[name].clone().requires_grad_() for name in names]
    batch = len(leaves[0])
    method = make(
        DeepClusterV2,
        batch=batch,
        views=len(leaves),
        projector_output=leaves[0].shape[1],
        prototypes=tuple(map(len, prototypes)),
        temperature=params["temperature"],
        bank_views=(0,),
    )
    for head, (own, y) in enumerate(zip(prototypes, labels, strict=True)):
        method.prototypes[head].data.copy_(own)
        method.labels[head, :batch] = torch.where(y == params.get("ignore", MISSING), MISSING, y)
    loss = method.loss({"z": torch.stack(leaves, dim=1)}, batch_info(torch.arange(batch)))
    if "gradient" not in last_part(key) and "without-label" not in last_part(key):
        return loss
    loss.backward()
    assert all(own.grad is None for own in method.prototypes)
    gradients = {f"grad_{name}": leaf.grad for name, leaf in zip(names, leaves, strict=True)}
    return {"loss": loss, **gradients}


@golden("deepcluster-v2/bank")
def bank_case(inputs: Case, params: Case, key: str) -> Any:
    """Fill the method's bank step by step through its own hook."""
    steps_per_epoch = params["rows"] // params["batch"]
    embeddings, indices = numbered(inputs, "e_"), numbered(inputs, "idx_")
    method = make(
        DeepClusterV2,
        batch=params["batch"],
        steps_per_epoch=steps_per_epoch,
        projector_output=embeddings[0].shape[1],
        prototypes=(2,),
    )
    states = []
    for step, (z, own) in enumerate(zip(embeddings, indices, strict=True)):
        batch = batch_info(own, step, steps_per_epoch)
        method.after_step({"z": torch.stack([z, z], dim=1)}, batch)
        if (step + 1) % steps_per_epoch == 0 or step + 1 == len(embeddings):
            bank = method.bank
            states.append({"index": bank.index.clone(), "bank": bank.rows[0].clone()})
    return states


@golden("deepcluster-v2/heads")
def bank_view_case(inputs: Case, params: Case, key: str) -> Any:
    views, heads = params["assign_crops"], params["heads"]
    method = make(
        DeepClusterV2,
        batch=2,
        views=views,
        projector_output=2,
        prototypes=(2,) * heads,
        bank_views=tuple(range(views)),
    )
    return [method.bank_view(head) for head in range(heads)]


# sela-v2


@golden("sela-v2/assign")
def transport_case(inputs: Case, params: Case, key: str) -> Any:
    if "scores" in inputs:
        return compare_with_swav(inputs["scores"], params)
    log_plan, repeats = balanced_transport(
        inputs["logits"].log_softmax(1),
        params["lambda"],
        iterations=params.get("iterations", 1_000_000),
        tolerance=params.get("tolerance"),
    )
    if "plan" in last_part(key):
        return log_plan.exp()
    labels = log_plan.argmax(1)
    counts = torch.bincount(labels, minlength=log_plan.shape[1])
    return {"labels": labels, "counts": counts, "repeats": repeats}


def compare_with_swav(scores: Tensor, params: Case) -> Case:
    temperature, epsilon = params["temperature"], params["epsilon"]
    log_plan, _ = balanced_transport(
        (scores / temperature).log_softmax(1),
        temperature / epsilon,
        iterations=params["iterations"],
    )
    codes = log_plan.exp() * len(scores)
    apart = (codes - sinkhorn(scores, epsilon, params["iterations"])).abs().max()
    early = (codes - sinkhorn(scores, epsilon, 3)).abs().max()
    return {
        "codes": codes,
        "max_abs_difference": round(float(apart), 9),
        "converged_vs_3_iterations": early,
    }


@golden("sela-v2/loss")
def sela_loss_case(inputs: Case, params: Case, key: str) -> Any:
    prototypes, labels = numbered(inputs, "c"), numbered(inputs, "y")
    z = inputs["z"].clone().requires_grad_()
    method = make(
        SeLaV2,
        batch=len(z),
        views=1,
        projector_output=z.shape[1],
        prototypes=tuple(map(len, prototypes)),
        temperature=params["temperature"],
        bank_views=(0,),
    )
    for head, (own, y) in enumerate(zip(prototypes, labels, strict=True)):
        method.prototypes[head].data.copy_(own)
        method.labels[head, : len(z)] = y
    loss = method.loss({"z": z[:, None]}, batch_info(torch.arange(len(z))))
    if "gradient" not in last_part(key):
        return loss
    loss.backward()
    gradients = {f"grad_c{head}": own.grad for head, own in enumerate(method.prototypes)}
    return {"loss": loss, "grad_z": z.grad, **gradients}


@golden("sela-v2/init")
def first_labels_case(inputs: Case, params: Case, key: str) -> Any:
    images, classes = params["N"], params["K"]
    method = make(
        SeLaV2,
        batch=2,
        steps_per_epoch=images // 2,
        images=images,
        projector_output=2,
        prototypes=(classes, classes),
    )
    counts = [torch.bincount(labels, minlength=classes) for labels in method.labels]
    assert not torch.equal(*method.labels)
    assert torch.equal(*counts)
    return counts[0]
