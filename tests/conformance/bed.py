"""A test bed for any registered method: a tiny network, 16-pixel images, one training step.

A method that comes in kinds (another network, a memory) has a further entry "name:kind" for each
in `SMALL`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferbench.methods.method import BatchInfo, Context, Embeddings, Method, Views
from transferbench.methods.parts.batch_norm import synchronize_batch_norm
from transferbench.methods.parts.collectives import average_gradients, rank, world_size
from transferbench.registry import load, names

IMAGES = 32
BATCH = 8
CLASSES = 5
STEPS = 40
STEPS_PER_EPOCH = IMAGES // BATCH


class TinyNet(nn.Module):
    """Images (B, 3, S, S) to features (B, 12): two convolutions with batch norm."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


def tiny_vit() -> nn.Module:
    """Images (B, 3, 16, 16) to features (B, 16), the mean of 16 patch tokens: two blocks."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=0,
        global_pool="avg",
        fc_norm=False,
    )


@dataclass(frozen=True)
class Small:
    """Settings, views and network of a method at the size of this bed."""

    settings: dict[str, Any] = field(default_factory=dict)
    view_sizes: tuple[int, ...] = (16, 16)
    backbone: Callable[[], nn.Module] = TinyNet


QUEUE: dict[str, Any] = {
    "projector_output": 16,
    "queue_size": 4 * BATCH,
    "temperature": 0.2,
    "momentum": 0.9,
    "batch_norm_groups": 4,
}
CLUSTERS: dict[str, Any] = {
    "clusters": (4, 7),
    "warmup_epochs": 0,
    "kmeans_iterations": 5,
    "kmeans_restarts": 2,
}

SMALL = {
    "supervised": Small({"label_smoothing": 0.1}, (16,)),
    "insdis": Small({"projector_output": 16, "negatives": 12, "temperature": 0.2}, (16,)),
    "insdis:nce": Small(
        {
            "projector_output": 16,
            "objective": "nce",
            "negatives": 12,
            "temperature": 0.2,
            "proximal": 0.1,
        },
        (16,),
    ),
    "insdis:full": Small({"projector_output": 16, "objective": "full", "temperature": 0.2}, (16,)),
    "pirl": Small(
        {"projector_output": 16, "negatives": 12, "temperature": 0.2, "patch": 4}, (16, 18)
    ),
    "infomin": Small(
        {**QUEUE, "projector_hidden": 24, "temperature": 0.07, "grid": 2, "patch": 8},
        (16, 16, 18),
    ),
    "pirl:full": Small(
        {"projector_output": 16, "objective": "full", "temperature": 0.2, "patch": 4}, (16, 18)
    ),
    "pirl:nce": Small(
        {
            "projector_hidden": 12,
            "projector_output": 16,
            "objective": "nce",
            "negatives": 12,
            "temperature": 0.2,
            "grid": 2,
            "patch": 6,
        },
        (16, 16),
    ),
    "simclr-v1": Small({"projector_hidden": 24, "projector_output": 16, "temperature": 0.5}),
    "sela-v2": Small(
        {
            "projector_hidden": 24,
            "projector_output": 16,
            "prototypes": (5, 4, 6),
            "assignment_lambda": 10.0,
            "tolerance": 0.01,
            "first_labels": "bank",
        },
        (16, 16, 8),
    ),
    "sela-v2:soft": Small(
        {
            "projector_hidden": 24,
            "projector_output": 16,
            "prototypes": (5, 4),
            "assignment_lambda": 3.0,
            "soft_labels": True,
            "label_updates": 12,
        },
    ),
    "byol": Small(
        {"projector_hidden": 24, "projector_output": 16, "predictor_hidden": 24, "tau_base": 0.9}
    ),
    "deepcluster-v2": Small(
        {"projector_hidden": 24, "projector_output": 16, "prototypes": (5, 6, 4)}, (16, 16, 8)
    ),
    "swav": Small(
        {
            "projector_hidden": 24,
            "projector_output": 16,
            "prototypes": 10,
            "queue_length": 2 * BATCH,
            "queue_from_epoch": 0,
            "freeze_prototypes_epochs": 0,
            "freeze_prototypes_steps": 1,
        },
        (16, 16, 8, 8),
    ),
    "simsiam": Small({"projector_output": 16, "predictor_hidden": 4}),
    "barlow-twins": Small({"projector_hidden": 24, "projector_output": 16}),
    "simclr-v2": Small({"projector_hidden": 24, "projector_output": 16, "temperature": 0.5}),
    "simclr-v2:memory": Small(
        {
            "projector_hidden": 24,
            "projector_output": 16,
            "temperature": 0.5,
            "memory_size": 3 * BATCH,
            "memory_momentum": 0.9,
        }
    ),
    "moco-v1": Small({**QUEUE}),
    "moco-v2": Small({**QUEUE, "projector_hidden": 24}),
    "moco-v2:symmetric": Small({**QUEUE, "projector_hidden": 24, "symmetric": True}),
    "pcl-v1": Small({**QUEUE, **CLUSTERS}),
    "pcl-v1:warm-up": Small({**QUEUE, **CLUSTERS, "warmup_epochs": 1}),
    "pcl-v2": Small({**QUEUE, **CLUSTERS, "projector_hidden": 24}),
    "moco-v3": Small(
        {
            "projector_hidden": 24,
            "projector_output": 16,
            "predictor_hidden": 24,
            "temperature": 0.2,
            "momentum": 0.9,
        }
    ),
    "moco-v3:vit": Small(
        {
            "projector_hidden": 24,
            "projector_output": 16,
            "predictor_hidden": 24,
            "temperature": 0.2,
            "momentum": 0.9,
        },
        backbone=tiny_vit,
    ),
    "twist": Small({"head_hidden": 24, "classes": 10}, (16, 16, 8)),
    "twist:bunch": Small({"head_hidden": 24, "classes": 6, "norm_images": 4, "epsilon": 1e-5}),
    "twist:self-label": Small(
        {"head_hidden": 24, "classes": 10, "self_label_from_epoch": 0}, (16, 16, 8)
    ),
    "mae": Small(
        {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}, (16,), backbone=tiny_vit
    ),
}


def cases() -> list[str]:
    """Every registered method, and the further kinds of those that come in several."""
    methods = names("methods")
    kinds = [case for case in SMALL if ":" in case and case.partition(":")[0] in methods]
    return [*methods, *kinds]


def method_class(name: str) -> type[Method]:
    """The class of a method, or of one kind of it."""
    found: type[Method] = load("methods", name.partition(":")[0])
    return found


def small(name: str) -> Small:
    """The bed's settings of a method; a method without an entry takes its tiny recipe's."""
    if name in SMALL:
        return SMALL[name]
    from transferbench.pretrain.recipe import load_recipe, recipe_names

    if f"tiny/{name}" in recipe_names():
        recipe = load_recipe(f"tiny/{name}")
        sizes = tuple(view.size for view in recipe.views for _ in range(view.count))
        largest = max(sizes)
        return Small(recipe.settings, tuple(16 if size == largest else 8 for size in sizes))
    return Small()


def build(
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    processes: int = 1,
    backbone: nn.Module | None = None,
    **settings: Any,
) -> Method:
    """Make a method on the tiny network, in training mode."""
    kind = method_class(name)
    torch.manual_seed(seed)
    spec = small(name)
    context = Context(
        num_images=IMAGES,
        num_classes=CLASSES,
        view_sizes=spec.view_sizes,
        batch_size=BATCH,
        total_steps=STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=STEPS // STEPS_PER_EPOCH,
        world_size=processes,
    )
    chosen = kind.Settings(**{**spec.settings, **settings})
    method = kind(chosen, backbone or spec.backbone(), context)
    return method.to(dtype).train()


class Data:
    """Images, labels and views, the same for one seed everywhere; its own share on a process."""

    def __init__(self, name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        chance = torch.Generator().manual_seed(seed)
        coarse = torch.randn(IMAGES, 3, 4, 4, generator=chance, dtype=torch.float64)
        self.images = F.interpolate(coarse, size=16, mode="bilinear").to(dtype)
        self.labels = torch.randint(0, CLASSES, (IMAGES,), generator=chance)
        self.sizes = small(name).view_sizes
        self.method_chance = torch.Generator().manual_seed(seed)

    def step(self, step: int, *, batch_of: int | None = None) -> tuple[Views, BatchInfo]:
        """Views and information of a step; `batch_of` fixes whose images and views they are."""
        source = step if batch_of is None else batch_of
        chance = torch.Generator().manual_seed(1000 + source)
        start = source * BATCH % IMAGES
        indices = torch.arange(start, start + BATCH)
        views = tuple(self.view(indices, size, chance) for size in self.sizes)
        batch = BatchInfo(
            indices=indices,
            labels=self.labels[indices],
            step=step,
            total_steps=STEPS,
            epoch=step // STEPS_PER_EPOCH,
            steps_per_epoch=STEPS_PER_EPOCH,
            generator=self.method_chance,
        )
        share = BATCH // world_size()
        first = rank() * share
        own = slice(first, first + share)
        return tuple(view[own] for view in views), batch.part(first, first + share)

    def view(self, indices: Tensor, size: int, chance: torch.Generator) -> Tensor:
        images = self.images[indices]
        noise = torch.randn(images.shape, generator=chance, dtype=torch.float64)
        return F.interpolate(images + 0.5 * noise.to(images), size=size, mode="bilinear")

    def embed_all(self, method: Method) -> Callable[..., tuple[Tensor, Tensor]]:
        """The walk over the data set that `before_epoch` is given."""

        def walk(
            function: Callable[[Views], Tensor],
            *,
            views: Literal["plain", "train"] = "plain",
            training: bool = False,
        ) -> tuple[Tensor, Tensor]:
            was_training = method.training
            method.train(training)
            indices, outputs = [], []
            for step in range(STEPS_PER_EPOCH):
                given, batch = self.step(step)
                if views == "plain":
                    given = (self.images[batch.indices],)
                with torch.no_grad():
                    outputs.append(function(given))
                indices.append(batch.indices)
            method.train(was_training)
            return torch.cat(indices), torch.cat(outputs)

        return walk


def optimizer_of(method: Method, *, lr: float = 0.05) -> torch.optim.Optimizer:
    groups = [{"params": group} for group in method.parameter_groups().values() if group]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    data: Data,
    step: int,
    *,
    batch_of: int | None = None,
    frozen: bool = False,
) -> float:
    """Do what the engine does in a step; `frozen` leaves out what moves state without gradient."""
    if step % STEPS_PER_EPOCH == 0 and not frozen:
        method.before_epoch(step // STEPS_PER_EPOCH, data.embed_all(method), data.method_chance)
    views, batch = data.step(step, batch_of=batch_of)
    method.before_step(batch)
    embeddings = method.embed(views, batch)
    loss = method.loss(embeddings, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(method.parameters())
    method.after_backward(batch)
    optimizer.step()
    if not frozen:
        method.after_step(detached(embeddings), batch)
    return loss.item()


def detached(embeddings: Embeddings) -> Embeddings:
    return {name: value.detach() for name, value in embeddings.items()}


def gradients(method: Method) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in method.named_parameters()
        if parameter.grad is not None
    }


def share_batch_norm(method: Method) -> Method:
    """Do what the engine does on several processes."""
    if method.global_batch_norm and world_size() > 1:
        synchronize_batch_norm(method)
    return method


def steps_of(data: Data, count: int) -> Iterator[tuple[Views, BatchInfo]]:
    return (data.step(step) for step in range(count))
