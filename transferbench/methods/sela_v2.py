"""SeLa-v2: learn labels that the network agrees with most and that use all classes equally.

Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, app. D (arXiv
2006.09882), an improved SeLa: Self-labelling via simultaneous clustering and representation
learning (arXiv 1911.05371; official code yukimasano/self-label). No training code of v2 is public.

Followed is the appendix: labels once per epoch from the embeddings that the last epoch left
(as DeepCluster-v2 keeps them), several heads, trained prototypes. Where it is silent, the original
decides: hard labels, lambda 25, its stopping rule, random balanced labels before the first
assignment, one class after the other, shuffled. Prototypes have unit length, as SwAV's. The
original's first labels come from the untrained network, and it relabels at times of its own
rather than in every epoch: `first_labels` and `label_updates`. Sums over samples, and the mean of
the loss, go over all processes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from transferbench.methods.method import (
    BatchInfo,
    Context,
    EmbedAll,
    Embeddings,
    Method,
    MethodSettings,
    Views,
)
from transferbench.methods.parts.cluster_labels import (
    BALANCE,
    MISSING,
    cluster_logits,
    label_accuracy,
    label_balance,
    labeled_cross_entropy,
    require_bank_views,
    require_clusters,
)
from transferbench.methods.parts.feature_bank import FeatureBank
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.multicrop import embed_crops
from transferbench.methods.parts.requirements import require_batch
from transferbench.methods.parts.transport import balanced_transport
from transferbench.optim.schedules import label_times


class SeLaV2Settings(MethodSettings):
    """Settings of `sela-v2`."""

    projector_hidden: int = Field(default=2048, ge=1)
    """Width of the projector's hidden layer."""
    projector_output: int = Field(default=128, ge=1)
    """Width of the embedding, and of a prototype."""
    prototypes: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(3000, 3000, 3000), min_length=1
    )
    """Number of classes of each head."""
    temperature: float = Field(default=0.1, gt=0.0)
    """Divides the scores."""
    assignment_lambda: float = Field(default=25.0, gt=0.0)
    """Power of the probabilities in the assignment: the larger, the harder the plan. SwAV's
    epsilon is the temperature over it."""
    tolerance: float = Field(default=0.1, ge=0.0)
    """The assignment ends once its scaling of the samples changes by less in all (relative)."""
    most_repeats: int = Field(default=1000, ge=1)
    """The assignment ends after as many scalings at the latest; the original has no limit."""
    soft_labels: bool = False
    """Train on the plan's class probabilities instead of its most probable class; they take
    images times classes numbers a head."""
    first_labels: Literal["random", "bank"] = "random"
    """Labels of the first epoch: random and balanced, or assigned to the untrained network's
    embeddings, from a pass over all images, as in the original."""
    label_updates: int | None = Field(default=None, ge=2)
    """Assign so many times in the run, often at first, as the original (100); default: at the
    start of every epoch."""
    bank_views: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    """Which views are remembered for the assignment, counted from 0: the large crops."""


class SeLaV2(Method):
    """Balanced labels of the whole set by optimal transport (arXiv 2006.09882 app. D)."""

    Settings = SeLaV2Settings
    global_batch_norm = True
    own_groups = ("prototypes",)
    labels: Tensor
    balance: Tensor

    def __init__(self, settings: SeLaV2Settings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_batch("sela-v2", context, 2)
        require_clusters("sela-v2", context, settings.prototypes)
        require_bank_views("sela-v2", context, settings.bank_views)
        width, output = self.num_features, settings.projector_output
        self.projector = mlp([width, settings.projector_hidden, output])
        self.prototypes = nn.ParameterList(
            F.normalize(torch.randn(classes, output), dim=1) for classes in settings.prototypes
        )
        self.bank = FeatureBank(context, len(settings.bank_views), output)
        images, sizes = context.num_images, settings.prototypes
        labels = [first_labels(images, classes) for classes in sizes]
        self.register_buffer("labels", torch.stack(labels))
        even = (1, min(images // k for k in sizes), max(-(-images // k) for k in sizes))
        self.register_buffer("balance", torch.tensor(even).float())
        if settings.soft_labels:
            for head, (own, classes) in enumerate(zip(labels, sizes, strict=True)):
                one_hot = torch.zeros(images, classes).scatter_(1, own[:, None], 1.0)
                self.register_buffer(f"soft_labels{head}", one_hot)

    def before_epoch(self, epoch: int, embed_all: EmbedAll, generator: torch.Generator) -> None:
        """Assign all labels anew from what the last epoch left in the bank."""
        if self.settings.first_labels == "bank" and not self.bank.is_full():
            self.bank.fill(embed_all, self.embed_bank_views)
        if self.settings.label_updates is None and self.bank.is_full():
            self.assign_labels()

    def before_step(self, batch: BatchInfo) -> None:
        """Bring the prototypes back to unit length; assign labels where the original would."""
        for prototypes in self.prototypes:
            prototypes.data.copy_(F.normalize(prototypes.data, dim=1))
        if self.is_label_time(batch) and self.bank.is_full():
            self.assign_labels()

    def is_label_time(self, batch: BatchInfo) -> bool:
        """Tell whether one of the original's times has passed since the last step."""
        updates = self.settings.label_updates
        if updates is None:
            return False
        before, now = ((batch.step - ago) / batch.steps_per_epoch for ago in (1, 0))
        return any(before < time <= now for time in label_times(self.context.epochs, updates))

    @torch.no_grad()
    def assign_labels(self) -> None:
        """Solve the balanced assignment of each head, with the prototypes as they are now."""
        options = self.settings
        for head, prototypes in enumerate(self.prototypes):
            rows = self.bank.rows[head % len(options.bank_views)]
            logits = cluster_logits(rows, F.normalize(prototypes, dim=1), options.temperature)
            log_plan, _ = balanced_transport(
                logits.log_softmax(1),
                options.assignment_lambda,
                iterations=options.most_repeats,
                tolerance=options.tolerance,
            )
            self.labels[head] = self.bank.by_image(log_plan.argmax(1), MISSING)
            if options.soft_labels:
                soft = self.bank.by_image(log_plan.softmax(1), 0.0)
                self.get_buffer(f"soft_labels{head}").copy_(soft)
        self.balance.copy_(label_balance(self.labels, options.prototypes))

    def embed_bank_views(self, views: Views) -> Tensor:
        """Return the unit embeddings (B, A, projector_output) of the bank's views, one by one."""
        chosen = [views[view] for view in self.settings.bank_views]
        z = torch.stack([self.projector(self.backbone(view)) for view in chosen], dim=1)
        return F.normalize(z, dim=-1)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "z" (B, V, projector_output), unit rows.

        One backbone pass a resolution; the projector's batch norm mixes all crops.
        """
        z, features = embed_crops(self.backbone, self.projector, views)
        return {"z": z, "features": features}

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean over heads of all views' cross-entropy with their image's label."""
        losses, accuracies = [], []
        for head, prototypes in enumerate(self.prototypes):
            logits = cluster_logits(embeddings["z"], prototypes, self.settings.temperature)
            labels, soft = self.labels[head][batch.indices], None
            if self.settings.soft_labels:
                soft = self.get_buffer(f"soft_labels{head}")[batch.indices]
            losses.append(labeled_cross_entropy(logits, labels, soft))
            accuracies.append(label_accuracy(logits, labels))
        self.log("label_accuracy", torch.stack(accuracies).mean())
        for name, value in zip(BALANCE, self.balance, strict=True):
            self.log(name, value)
        return torch.stack(losses).mean()

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Remember the embeddings that this step trained on."""
        row = batch.step % batch.steps_per_epoch * len(batch.indices)
        views = list(self.settings.bank_views)
        self.bank.write(row, batch.indices, embeddings["z"][:, views])


def first_labels(images: int, classes: int) -> Tensor:
    """Return i mod `classes` for every image i, shuffled: (N,) int64, as balanced as possible."""
    return (torch.arange(images) % classes)[torch.randperm(images)]
