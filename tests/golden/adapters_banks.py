"""Golden adapters of the methods with a memory bank, a puzzle, or both.

Losses and updates are the methods' own, at the case's size; only what a case fixes (which rows
are the negatives) replaces a draw.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden import harness
from tests.golden.adapters_methods import batch_info, last_part
from transferbench.augment.randaugment import argument
from transferbench.methods.infomin import InfoMin
from transferbench.methods.insdis import InsDis, proximal
from transferbench.methods.method import BatchInfo, Context, Method
from transferbench.methods.moco_v1 import MoCoV1
from transferbench.methods.parts.bank import noise_contrastive_terms
from transferbench.methods.parts.jigsaw import JigsawHead, patch_boxes
from transferbench.methods.pirl import PIRL

Case = dict[str, Any]
golden = partial(harness.golden, whole={"y", "neg", "perm", "dx", "dy"})


class Blank(nn.Module):
    """A backbone that takes images of any size; or, as the method's own, any features."""

    num_features = 2

    def forward(self, images: Tensor) -> Tensor:
        return images


def make(
    method: type[Method], *, images: int, views: tuple[int, ...] = (16,), **settings: Any
) -> Any:
    """Build a method in float64 for a set of `images` images."""
    context = Context(
        num_images=images,
        num_classes=None,
        view_sizes=views,
        batch_size=2,
        total_steps=1,
        steps_per_epoch=1,
        epochs=1,
    )
    return method(method.Settings(**settings), Blank(), context).double()


def with_bank(method: type[Method], inputs: Case, **settings: Any) -> Any:
    """Build a method whose bank, and where given whose negatives, are the case's."""
    bank = inputs["bank"]
    if method is PIRL:
        settings |= {"grid": 2, "patch": 8}
    views = (16, 16) if method is PIRL else (16,)
    built = make(method, images=len(bank), views=views, projector_output=bank.shape[1], **settings)
    built.bank.rows.copy_(bank)
    if "neg" in inputs:
        candidates = torch.cat([inputs["y"][:, None], inputs["neg"]], dim=1)
        built.settings = built.settings.model_copy(update={"negatives": inputs["neg"].shape[1]})
        built.bank.candidates = lambda *_: candidates
    return built


def of_images(indices: Tensor) -> BatchInfo:
    info = batch_info()
    return BatchInfo(**{**info.__dict__, "indices": indices})


def fix_z(method: Any, z: float) -> None:
    method.nce.log_z.fill_(z).log_()
    method.nce.is_set.fill_(True)


def updated_bank(method: type[Method], inputs: Case, params: Case, **further: Tensor) -> Tensor:
    """The bank after the method's own hook."""
    built = with_bank(method, inputs, bank_momentum=params["momentum"])
    built.after_step({"f": inputs["f"], **further}, of_images(inputs["y"]))
    rows: Tensor = built.bank.rows
    return rows


# insdis


@golden("insdis/nce")
def insdis_nce_case(inputs: Case, params: Case, key: str) -> Any:
    method = with_bank(
        InsDis, inputs, objective="nce", temperature=params["T"], nce_epsilon=params["eps"]
    )
    if "Z" in params:
        fix_z(method, params["Z"])
    f = inputs["f"].clone().requires_grad_()
    loss = method.loss({"f": f}, of_images(inputs["y"]))
    if "gradient" in last_part(key):
        loss.backward()
        return f.grad
    if "Z" in params:
        return loss
    method.after_step({"f": f.detach()}, of_images(inputs["y"]))
    return [method.nce.log_z.exp(), loss]


@golden("insdis/softmax")
def insdis_softmax_case(inputs: Case, params: Case, key: str) -> Any:
    name = last_part(key)
    objective = "full" if name.startswith("full") else "softmax"
    method = with_bank(InsDis, inputs, objective=objective, temperature=params["T"])
    batch = of_images(inputs["y"])
    if "v" not in inputs:
        f = inputs["f"].clone().requires_grad_()
        loss = method.loss({"f": f}, batch)
        if "gradient" in name:
            loss.backward()
            return f.grad
        return loss
    v = inputs["v"].clone().requires_grad_()
    method.projector = nn.Identity()
    loss = method.loss(method.embed((v,), batch), batch)
    loss.backward()
    return v.grad if "gradient" in name else loss


@golden("insdis/bank")
def insdis_bank_case(inputs: Case, params: Case, key: str) -> Any:
    return updated_bank(InsDis, inputs, params)


@golden("insdis/proximal")
def insdis_proximal_case(inputs: Case, params: Case, key: str) -> Any:
    """The positives' share of the loss, without the constant that the code adds to the noise."""
    new, old = inputs["v_new"], inputs["v_old"]
    method = with_bank(InsDis, {"bank": old})
    own = torch.arange(len(new))[:, None]
    positive, _ = noise_contrastive_terms(
        method.bank.scores(new, own, params["T"]),
        torch.tensor(params["Z"], dtype=torch.float64).log(),
        noise=params["K"] / params["n"],
        epsilon=params.get("eps", 0.0),
    )
    return positive.mean() + params["lam"] * proximal(new, old).mean()


# pirl


@golden("pirl/loss")
def pirl_loss_case(inputs: Case, params: Case, key: str) -> Any:
    options: Case = {"temperature": params["T"]}
    options["jigsaw_weight"] = params.get("beta", params.get("lam"))
    if "Z" in params:
        options |= {"objective": "nce", "nce_epsilon": params["eps"]}
    method = with_bank(PIRL, inputs, **options)
    if "Z" in params:
        fix_z(method, params["Z"])
    f = inputs["f"].clone().requires_grad_()
    free = inputs["w" if "w" in inputs else "g"].clone().requires_grad_()
    g = F.normalize(free, dim=1) if "w" in inputs else free
    loss = method.loss({"f": f, "g": g}, of_images(inputs["y"]))
    if "gradient" not in last_part(key):
        return loss
    loss.backward()
    return f.grad if "gradient-f" in last_part(key) else free.grad


@golden("pirl/bank")
def pirl_bank_case(inputs: Case, params: Case, key: str) -> Any:
    g = inputs.get("g", -inputs["f"])
    return updated_bank(PIRL, inputs, params, g=g)


@golden("pirl/jigsaw")
def pirl_jigsaw_case(inputs: Case, params: Case, key: str) -> Any:
    grid = params["grid"]
    offsets = torch.stack([inputs["dy"], inputs["dx"]], dim=1)
    # Cells in the case's order, seen row by row.
    cells = torch.arange(grid * grid)
    if not params.get("order", "row").startswith("row"):
        cells = cells.view(grid, grid).T.flatten()
    boxes = patch_boxes(
        offsets[cells.argsort()], grid=grid, cell=params["cell"], patch=params["patch"]
    )
    return boxes[cells]


@golden("pirl/head/jigsaw")
def pirl_head_case(inputs: Case, params: Case, key: str) -> Any:
    width, pieces = inputs["p"].shape[1], params["k"]
    head = JigsawHead(width, width, pieces).double()
    head.together = nn.Linear(width * pieces, len(inputs["fc_w"])).double()
    head.together.weight.data.copy_(inputs["fc_w"])
    head.together.bias.data.copy_(inputs["fc_b"])
    return head.join(inputs["p"].view(-1, pieces, width), inputs["perm"])


# infomin


@golden("infomin/loss")
def infomin_loss_case(inputs: Case, params: Case, key: str) -> Any:
    queue, name = inputs["queue"], last_part(key)
    method = infomin(
        queue,
        temperature=params["T"],
        jigsaw_weight=params["beta"],
        projector_output=queue.shape[1],
    )
    q = inputs["q"].clone().requires_grad_()
    free = inputs["w" if "w" in inputs else "q_jig"].clone().requires_grad_()
    puzzle = F.normalize(free, dim=1) if "w" in inputs else free
    loss = method.loss({"q": q, "k": inputs["k"], "q_jigsaw": puzzle}, batch_info())
    if "gradient" not in name:
        return loss
    loss.backward()
    return free.grad if "jig" in name else q.grad


@golden("infomin/queue")
def infomin_queue_case(inputs: Case, params: Case, key: str) -> Any:
    method = infomin(inputs["queue"], projector_output=inputs["queue"].shape[1])
    method.queue.pointer.fill_(params["ptr"])
    method.after_step({"k": inputs["keys"]}, batch_info())
    return [method.queue.rows, method.queue.pointer]


@golden("infomin/order")
def infomin_order_case(inputs: Case, params: Case, key: str) -> Any:
    """One number as a network: InfoMin's own hooks, and for the other order those of MoCo."""
    later = "after" in last_part(key)
    method: Any
    if later:
        method = infomin(torch.zeros(2, 2).double(), momentum=params["a"])
    else:
        method = make(
            MoCoV1,
            images=8,
            views=(16, 16),
            momentum=params["a"],
            queue_size=2,
            batch_norm_groups=1,
        )
    for projector in (method.projector, method.key_encoder.projector):
        for parameter in projector.parameters():
            parameter.data.fill_(params["theta0"])
    theta = next(method.projector.parameters())
    average = next(method.key_encoder.projector.parameters())
    optimizer = torch.optim.SGD([theta], lr=params["lr"])
    values = []
    for gradient in inputs["g"].tolist():
        method.before_step(batch_info())
        used = average.flatten()[0].clone()
        theta.grad = torch.full_like(theta, gradient)
        optimizer.step()
        method.after_step({"k": torch.zeros(2, method.queue.rows.shape[1]).double()}, batch_info())
        values.append([theta.flatten()[0].clone(), average.flatten()[0].clone() if later else used])
    return values


@golden("infomin/randaugment/arguments")
def infomin_arguments_case(inputs: Case, params: Case, key: str) -> Any:
    names = {
        "Rotate_degrees": "Rotate",
        "Enhance_factor": "Color",
        "Shear": "ShearX",
        "TranslateRel_fraction": "TranslateX",
        "PosterizeTpu_bits": "Posterize",
        "Solarize_threshold": "Solarize",
        "SolarizeAdd_amount": "SolarizeAdd",
    }
    magnitudes = torch.tensor(params["magnitudes"], dtype=torch.float64)
    arguments = {name: argument(operation, magnitudes) for name, operation in names.items()}
    return [{name: values[i] for name, values in arguments.items()} for i in range(len(magnitudes))]


def infomin(queue: Tensor, **settings: Any) -> Any:
    """Build the method around a queue (K, D)."""
    options = {"queue_size": len(queue), "batch_norm_groups": 1, "grid": 2, "patch": 8}
    method = make(InfoMin, images=8, views=(16, 16, 16), **options, **settings)
    method.queue.rows = queue.clone()
    return method
