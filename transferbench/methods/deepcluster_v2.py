"""DeepCluster-v2: classify images by the clusters that last epoch's embeddings formed.

Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, app. D (arXiv
2006.09882), an improved DeepCluster (arXiv 1807.05520); official code facebookresearch/swav:
main_deepclusterv2.py.

Where the paper is silent the code is followed: spherical k-means of ten iterations from random
rows, empty clusters left alone; the bank is written by position in the epoch, not by image, and
filled before the first epoch by a pass over augmented views in training mode; images of a dropped
last batch have no label. Of this project: the initial centroids are rows of all processes, where
the code takes rank 0's (a random part of them), and the loss is the mean over the labeled images
of all processes, where the code averages their means; so the number of processes plays no part.
"""

from __future__ import annotations

from typing import Annotated

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
from transferbench.methods.parts.spherical_kmeans import spherical_kmeans


class DeepClusterV2Settings(MethodSettings):
    """Settings of `deepcluster-v2`."""

    projector_hidden: int = Field(default=2048, ge=1)
    """Width of the projector's hidden layer."""
    projector_output: int = Field(default=128, ge=1)
    """Width of the embedding, and of a prototype."""
    prototypes: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(3000, 3000, 3000), min_length=1
    )
    """Number of clusters of each clustering; every clustering has a head of its own."""
    temperature: float = Field(default=0.1, gt=0.0)
    """Divides the scores."""
    kmeans_iterations: int = Field(default=10, ge=1)
    """Of each clustering, once per epoch."""
    bank_views: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    """Which views are remembered for clustering, counted from 0: the large crops."""


class DeepClusterV2(Method):
    """Cluster the last epoch's embeddings, then classify (arXiv 2006.09882 app. D)."""

    Settings = DeepClusterV2Settings
    global_batch_norm = True
    labels: Tensor
    balance: Tensor

    def __init__(
        self, settings: DeepClusterV2Settings, backbone: nn.Module, context: Context
    ) -> None:
        super().__init__(settings, backbone, context)
        require_batch("deepcluster-v2", context, 2)
        require_clusters("deepcluster-v2", context, settings.prototypes)
        require_bank_views("deepcluster-v2", context, settings.bank_views)
        width, output = self.num_features, settings.projector_output
        self.projector = mlp([width, settings.projector_hidden, output])
        # Centroids, never trained: each clustering overwrites them.
        self.prototypes = nn.ParameterList(
            nn.Parameter(torch.zeros(clusters, output), requires_grad=False)
            for clusters in settings.prototypes
        )
        self.bank = FeatureBank(context, len(settings.bank_views), output)
        heads = len(settings.prototypes)
        self.register_buffer("labels", torch.full((heads, context.num_images), MISSING))
        self.register_buffer("balance", torch.zeros(3))

    def before_epoch(self, epoch: int, embed_all: EmbedAll, generator: torch.Generator) -> None:
        """Cluster what the last epoch left in the bank; before the first, fill it."""
        if not self.bank.is_full():
            self.bank.fill(embed_all, self.embed_bank_views)
        for head, prototypes in enumerate(self.prototypes):
            view = self.bank_view(head)
            start = self.bank.draw(view, len(prototypes), generator)
            centroids, clusters = spherical_kmeans(
                self.bank.rows[view], start, self.settings.kmeans_iterations
            )
            prototypes.data.copy_(centroids)
            self.labels[head] = self.bank.by_image(clusters, MISSING)
        self.balance.copy_(label_balance(self.labels, self.settings.prototypes))

    def bank_view(self, head: int) -> int:
        """Return which of the bank's views a head clusters."""
        return head % len(self.settings.bank_views)

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
        """Return the mean over heads of all views' cross-entropy with their image's cluster."""
        losses, accuracies = [], []
        for prototypes, all_labels in zip(self.prototypes, self.labels, strict=True):
            logits = cluster_logits(embeddings["z"], prototypes, self.settings.temperature)
            labels = all_labels[batch.indices]
            losses.append(labeled_cross_entropy(logits, labels))
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
