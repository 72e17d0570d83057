"""Golden adapters of the methods that learn classes: losses come from the methods themselves.

Cases of two processes run on two real ones (gloo), through the same collectives as training.
"""

from __future__ import annotations

import math
from functools import partial
from string import ascii_lowercase
from typing import Any

import torch
from torch import Tensor, nn

from tests.conformance.pair import run_on_both
from tests.golden import harness
from transferbench.methods.deepcluster_v2 import DeepClusterV2
from transferbench.methods.method import BatchInfo, Context, Method
from transferbench.methods.parts.cluster_labels import MISSING
from transferbench.methods.parts.plain_norm import norm_statistics, normalize
from transferbench.methods.parts.sinkhorn import sinkhorn
from transferbench.methods.parts.spherical_kmeans import spherical_kmeans
from transferbench.methods.parts.transport import balanced_transport
from transferbench.methods.sela_v2 import SeLaV2
from transferbench.methods.twist import TWIST, class_entropies, confident_labels, crop_pairs

Case = dict[str, Any]

golden = partial(
    harness.golden, whole={"init_rows", "y", *(f"idx_{letter}" for letter in ascii_lowercase)}
)


class Nothing(nn.Module):
    """A backbone that is never run."""

    num_features = 2


def make(
    method: type[Method],
    *,
    batch: int,
    views: int = 2,
    steps_per_epoch: int = 50,
    **settings: Any,
) -> Any:
    """Build a method in float64 whose networks stay unused; an epoch has whole batches alone."""
    context = Context(
        num_images=batch * steps_per_epoch,
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
    return [inputs[name] for name in names_of(inputs, prefix)]


def names_of(inputs: Case, prefix: str) -> list[str]:
    """Names of one prefix in their order: c0, c1, ..., c10."""
    names = [name for name in inputs if name.startswith(prefix)]
    return sorted(names, key=lambda name: (len(name), name))


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
    names = names_of(inputs, "z")
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
        batch=images,
        steps_per_epoch=1,
        projector_output=2,
        prototypes=(classes, classes),
    )
    counts = [torch.bincount(labels, minlength=classes) for labels in method.labels]
    assert torch.equal(*counts)
    return counts[0]


# twist


def make_twist(
    batch: int, views: int, classes: int, *, last_norm: bool = False, **settings: Any
) -> Any:
    return make(TWIST, batch=batch, views=views, classes=classes, last_norm=last_norm, **settings)


def twist_loss(logits: Tensor, **settings: Any) -> tuple[Tensor, Any]:
    """The method's loss of logits (B, V, C), and the method for what it logged."""
    method = make_twist(*logits.shape, **settings)
    return method.loss({"logits": logits}, batch_info(torch.arange(len(logits)))), method


def stacked(inputs: Case, prefix: str) -> Tensor:
    return torch.stack(numbered(inputs, prefix), dim=1)


def code_weights(params: Case) -> Case:
    """The official code's names, where a case gives them."""
    weights = {"sharpness_weight": 1 + params.get("lam1", 0.0)}
    return weights | {"diversity_weight": params.get("lam2", 1.0), "epsilon": params.get("eps", 0)}


@golden("twist/loss")
def twist_loss_case(inputs: Case, params: Case, key: str) -> Any:
    name = last_part(key)
    if "limit-states" in name:
        return limit_states(params["B"], params["C"])
    if "two-processes" in name:
        return twist_on_two_processes(inputs, params)
    if "multi-crop" in name:
        logits = stacked(inputs, "v")
        return {"pairs": crop_pairs(logits.shape[1]), "loss": twist_loss(logits)[0]}
    if "code-epsilon" in name:
        loss, method = twist_loss(stacked(inputs, "l"), **code_weights(params))
        logged = method.logged
        return {
            "kl": logged["consistency"],
            "sharpness": logged["sharpness"],
            "diversity": logged["diversity_entropy"],
            "final": loss,
        }
    if "gradient" in name:
        leaves = [logits.clone().requires_grad_() for logits in numbered(inputs, "l")]
        loss, _ = twist_loss(torch.stack(leaves, dim=1))
        loss.backward()
        gradients = {f"grad_l{view + 1}": leaf.grad for view, leaf in enumerate(leaves)}
        return {"loss": loss, **gradients}
    log_p = stacked(inputs, "p").log()
    if "symmetric" in name:
        return twist_loss(log_p)[0]
    cross, diversity = class_entropies(log_p)
    if "weighted" in name:
        weights = {"sharpness_weight": params["alpha"], "diversity_weight": params["beta"]}
        three_term, _ = twist_loss(log_p, **weights)
        form = (cross[0, 1] + cross[1, 0]) / 2 - params["beta"] * diversity.mean()
        difference = three_term - form
        return {
            "three_term": three_term,
            "cross_entropy_form": form,
            "difference": difference,
        }
    # One direction, L(P1||P2).
    consistency, sharpness = cross[0, 1] - cross[0, 0], cross[0, 0]
    total = consistency + sharpness - diversity[0]
    if "cross-entropy" in name:
        form = cross[0, 1] - diversity[0]
        difference = round(float(total - form), 12)
        return {"cross_entropy": cross[0, 1], "total": form, "difference": difference}
    return {
        "consistency": consistency,
        "sharpness": sharpness,
        "diversity_entropy": diversity[0],
        "total": total,
    }


def limit_states(batch: int, classes: int) -> Case:
    one_hot = torch.eye(classes, dtype=torch.float64) * 1e4
    states = {
        "all_uniform": torch.zeros(batch, classes, dtype=torch.float64),
        "all_one_class": one_hot[:1].expand(batch, -1),
        "balanced_one_hot": one_hot[torch.arange(batch) % classes],
    }
    answer = {}
    for state, logits in states.items():
        total, method = twist_loss(torch.stack([logits, logits], dim=1))
        names = ("sharpness", "diversity_entropy")
        answer[state] = {name: method.logged[name] for name in names} | {"total": total}
    return answer


def twist_share(logits: Tensor, settings: Case) -> Tensor:
    return twist_loss(logits, **settings)[0]


def twist_on_two_processes(inputs: Case, params: Case) -> Case:
    halves = [
        torch.stack([inputs[f"l1_rank{rank}"], inputs[f"l2_rank{rank}"]], dim=1) for rank in (0, 1)
    ]
    weights = code_weights(params)
    shares = run_on_both(twist_share, [(half, weights) for half in halves])
    loss = sum(shares) / 2
    # What the official code holds before it corrects the value for its log.
    raw = 2 * loss + weights["diversity_weight"] * 2 * math.log(2)
    alone = sum(twist_share(half, weights) for half in halves) / 2
    return {"loss": loss, "mean_of_local": alone, "raw_sum": raw}


@golden("twist/head")
def last_norm_case(inputs: Case, params: Case, key: str) -> Any:
    logits = stacked(inputs, "f")
    options = {"last_norm": True, "norm_images": len(logits), "norm_epsilon": params["eps"]}
    loss, method = twist_loss(logits, **options)
    normalized = normalize(logits, *norm_statistics(logits, len(logits)), params["eps"])
    torch.testing.assert_close(method.log_probabilities(logits), normalized.log_softmax(-1))
    return {"normalised_row0": normalized[0, 0], "loss": loss}


@golden("twist/self-label")
def self_label_case(inputs: Case, params: Case, key: str) -> Any:
    logits, quantile = stacked(inputs, "v"), params["quantile"]
    loss, method = twist_loss(
        logits, self_label_from_epoch=0, self_label_quantiles=(quantile, quantile)
    )
    sure = confident_labels(method.log_probabilities(logits), quantile)
    return {
        "threshold": sure.threshold,
        "kept": sure.kept,
        "targets": sure.targets,
        "loss": loss,
    }
