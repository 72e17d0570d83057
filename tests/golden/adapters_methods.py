"""Golden adapters of the methods: losses come from the method itself, built at the case's size.

Cases of two processes run on two real ones (gloo), through the same collectives as training.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conformance.pair import run_on_both
from tests.golden import harness
from transferbench.methods.byol import BYOL, squared_distance
from transferbench.methods.method import BatchInfo, Context, Method
from transferbench.methods.parts.contrastive import nt_xent_logits
from transferbench.methods.parts.ema import update_ema
from transferbench.methods.parts.sinkhorn import sinkhorn
from transferbench.methods.simclr_v1 import SimCLRv1, projection_head
from transferbench.methods.supervised import Supervised, initialize_fan_out
from transferbench.methods.swav import SwAV, score

Case = dict[str, Any]

golden = partial(harness.golden, whole={"steps", "labels", "shapes"})


class Nothing(nn.Module):
    """A backbone that is never run."""

    num_features = 2


def batch_info(step: int = 0, total_steps: int = 1, labels: Tensor | None = None) -> BatchInfo:
    return BatchInfo(
        indices=torch.arange(0),
        labels=labels,
        step=step,
        total_steps=total_steps,
        epoch=0,
        steps_per_epoch=1,
        generator=torch.Generator(),
    )


def make(
    method: type[Method],
    *,
    views: int = 2,
    classes: int | None = None,
    **settings: Any,
) -> Any:
    """Build a method in float64 whose networks stay unused."""
    context = Context(
        num_images=2,
        num_classes=classes,
        view_sizes=(16,) * views,
        batch_size=2,
        total_steps=1,
        steps_per_epoch=1,
        epochs=1,
    )
    return method(method.Settings(**settings), Nothing(), context).double()


def last_part(key: str) -> str:
    return key.rsplit("/", 1)[-1]


# simclr-v1


def simclr_loss(z: Tensor, temperature: float) -> Tensor:
    """The method's loss of projections (B, 2, D)."""
    method = make(SimCLRv1, temperature=temperature)
    loss: Tensor = method.loss({"z": z}, batch_info())
    return loss


@golden("simclr-v1/loss")
def simclr_loss_case(inputs: Case, params: Case, key: str) -> Any:
    name = last_part(key)
    if "two-processes" in name:
        z = torch.stack([inputs["z1"], inputs["z2"]], dim=1)
        shares = run_on_both(simclr_loss, [(half, params["T"]) for half in z.chunk(2)])
        return [*shares, sum(shares) / 2]
    z = inputs["z"].clone().requires_grad_()
    first, second = z.chunk(2)
    if "temperature-half" in name:
        logits, positives = nt_xent_logits(first, second, params["T"])
        rows = F.cross_entropy(logits, positives, reduction="none")
        return [simclr_loss(torch.stack([first, second], dim=1), params["T"]), rows]
    loss = simclr_loss(torch.stack([first, second], dim=1), params["T"])
    if "gradient" in name:
        loss.backward()
        return z.grad
    # The official scalar adds the two views' means.
    return 2 * loss if "official-scale" in name else loss


def case_head(inputs: Case, method: type[Method]) -> nn.Sequential:
    """Build SimCLR's head with the weights of a case."""
    weights = [inputs[name] for name in sorted(inputs) if name.startswith("w")]
    settings = method.Settings(
        projector_hidden=len(weights[0]),
        projector_output=len(weights[-1]),
        projector_layers=len(weights),
    )
    head = projection_head(inputs["h"].shape[1], settings).double()
    layers = [layer for layer in head if isinstance(layer, nn.Linear)]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data.copy_(weight)
    return head


@golden("simclr-v1/head")
def simclr_head_case(inputs: Case, params: Case, key: str) -> Any:
    return case_head(inputs, SimCLRv1)(inputs["h"])


# byol


@golden("byol/loss")
def byol_loss_case(inputs: Case, params: Case, key: str) -> Any:
    name = last_part(key)
    if "zero-prediction" in name:
        return squared_distance(inputs["p"], inputs["z"], params["epsilon"])
    p1 = inputs["p1"].clone().requires_grad_()
    embeddings = {
        "predictions": torch.stack([p1, inputs["p2"]], dim=1),
        "targets": torch.stack([inputs["z1"], inputs["z2"]], dim=1),
    }
    loss = make(BYOL).loss(embeddings, batch_info())
    if "gradient" in name:
        loss.backward()
        return p1.grad
    if "pseudo-code-offset" in name:
        return loss - 4
    return loss


@golden("byol/ema")
def byol_ema_case(inputs: Case, params: Case, key: str) -> Any:
    """Real optimizer and target, one layer of the given weights for each network."""
    if "steps" in inputs:
        method = make(BYOL, tau_base=params["base"])
        steps = inputs["steps"].tolist()
        return [method.tau(batch_info(step, params["K"])) for step in steps]
    constant = {"tau_base": params["tau"], "constant_tau": True} if "tau" in params else {}
    method = make(BYOL, **({"tau_base": params["base"]} if "base" in params else constant))
    rows, columns = inputs["theta0"].shape
    for attribute, start in (("projector", "theta0"), ("target_projector", "xi0")):
        layer = nn.Linear(columns, rows, bias=False).double()
        layer.weight.data.copy_(inputs[start])
        setattr(method, attribute, layer)
    optimizer = torch.optim.SGD(method.projector.parameters(), lr=params["lr"])
    targets = []
    for step in range(sum(name.startswith("g") for name in inputs)):
        method.projector.weight.grad = inputs[f"g{step}"].clone()
        optimizer.step()
        method.after_step({}, batch_info(step, params.get("K", 1)))
        targets.append(method.target_projector.weight.detach().clone())
    return targets[0] if "tau" in params else targets


@golden("common/ema")
def ema_case(inputs: Case, params: Case, key: str) -> Any:
    target, online = nn.Module(), nn.Module()
    target.register_parameter("w", nn.Parameter(inputs["target"].clone()))
    online.register_parameter("w", nn.Parameter(inputs["online"].clone()))
    update_ema(target, online, params["m"])
    return target.get_parameter("w")


# swav


@golden("swav/sinkhorn")
def sinkhorn_case(inputs: Case, params: Case, key: str) -> Any:
    options = (params["epsilon"], params["iterations"])
    if "scores" in inputs:
        return sinkhorn(inputs["scores"], *options)
    first, second = inputs["scores_rank0"], inputs["scores_rank1"]
    codes = run_on_both(sinkhorn, [(first, *options), (second, *options)])
    return {
        "rank0": codes[0],
        "rank1": codes[1],
        "local_only_rank0": sinkhorn(first, *options),
    }


@golden("swav/loss")
def swav_loss_case(inputs: Case, params: Case, key: str) -> Any:
    prototypes = inputs["prototypes"]
    views = [inputs[f"z{v}"] for v in range(sum(name.startswith("z") for name in inputs))]
    queues = [inputs[name] for name in sorted(inputs) if name.startswith("queue")]
    code_views = tuple(params.get("crops_for_assign", (0, 1)))
    method = make(
        SwAV,
        views=len(views),
        projector_output=prototypes.shape[1],
        prototypes=len(prototypes),
        temperature=params["temperature"],
        epsilon=params["epsilon"],
        sinkhorn_iterations=params["iterations"],
        code_views=code_views,
        queue_from_epoch=0,
    )
    method.prototypes.weight.data.copy_(prototypes)
    if queues:
        method.queues = torch.stack(queues)
    leaves = [view.clone().requires_grad_() for view in views]
    z = torch.stack(leaves, dim=1)
    loss = method.loss({"z": z}, batch_info())
    if "gradient" not in last_part(key) and not queues and "crops_for_assign" not in params:
        return loss
    loss.backward()
    answer = {"loss": loss, "grad_prototypes": method.prototypes.weight.grad}
    answer |= {f"grad_z{v}": leaf.grad for v, leaf in enumerate(leaves)}
    codes = method.codes(score(z, prototypes), batch_info())
    for view, code in zip(code_views, codes, strict=True):
        answer[f"code_view{view}"] = code
        answer |= {f"code_view{view}_row{i}": row for i, row in enumerate(code)}
    return answer


@golden("swav/queue")
def swav_queue_case(inputs: Case, params: Case, key: str) -> Any:
    """Fill the method's queue step by step through its own hook."""
    steps = [inputs[f"z_step{i}"] for i in range(len(inputs))]
    width = steps[0].shape[1]
    method = make(SwAV, projector_output=width, queue_from_epoch=0)
    method.queues = torch.zeros(2, params["queue_length"], width).double()
    used = []
    for z in steps:
        used.append(method.queue_is_used(batch_info()))
        method.after_step({"z": torch.stack([z, z], dim=1)}, batch_info())
    return {"used": used, "queue": method.queues[0]}


@golden("common/unit")
def unit_case(inputs: Case, params: Case, key: str) -> Any:
    """Bring rows to unit length as prototypes are before each step."""
    rows = inputs["x"]
    method = make(SwAV, projector_output=rows.shape[1], prototypes=len(rows))
    method.prototypes.weight.data.copy_(rows)
    method.before_step(batch_info())
    return method.prototypes.weight


# supervised


@golden("supervised/ce")
def cross_entropy_case(inputs: Case, params: Case, key: str) -> Any:
    logits = inputs["logits"].clone().requires_grad_()
    smoothing = params.get("smoothing", 0.0)
    method = make(Supervised, views=1, classes=logits.shape[1], label_smoothing=smoothing)
    loss = method.loss({"logits": logits}, batch_info(labels=inputs["labels"]))
    loss.backward()
    if "smoothing" in params:
        assert logits.grad is not None
        rows = {f"grad_row_{i}": row for i, row in enumerate(logits.grad)}
        return {"loss": loss, "gradient": logits.grad, **rows}
    return logits.grad if "gradient" in last_part(key) else loss


@golden("supervised/init")
def fan_out_case(inputs: Case, params: Case, key: str) -> Any:
    """The factor between a convolution's first weights and a standard normal draw of one seed."""
    deviations = []
    for out, channels, height, width in inputs["shapes"].tolist():
        layer = nn.Conv2d(channels, out, (height, width), bias=False).double()
        torch.manual_seed(0)
        initialize_fan_out(layer)
        torch.manual_seed(0)
        unit = torch.empty_like(layer.weight).normal_()
        deviations.append((layer.weight / unit).median())
    return deviations
