"""PCL: momentum contrast with keys and with the prototypes of clusters of all images.

Prototypical Contrastive Learning of Unsupervised Representations (arXiv 2005.04966); official code
salesforce/PCL.

Where paper and code differ, the code is followed: T 0.2 and 16384 negatives (paper: 0.1 and 16000);
concentrations are clipped to their 10th and 90th percentile before they are scaled; the prototype
terms of the clusterings are averaged and added with weight 1. The queue's length and the number of
negative prototypes, one number in the code, are two; where fewer clusters than that remain, all of
them are negatives (the code fails). Empty clusters are no negatives (the code may draw them).

The parts of momentum contrast are those of `moco-v1`. From the end of the warm-up on every epoch
begins with k-means of the key encoder's features in evaluation mode, several times with different
numbers of clusters. K-means is faiss's with restarts; its starts are drawn from the run's generator
(code: the same for every epoch).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.methods.method import (
    BatchInfo,
    Context,
    EmbedAll,
    Embeddings,
    Method,
    MethodSettings,
    Views,
)
from transferbench.methods.parts.collectives import gather
from transferbench.methods.parts.contrastive import (
    first_column_hits,
    first_column_loss,
    info_nce_logits,
)
from transferbench.methods.parts.kmeans import KMeansSearch
from transferbench.methods.parts.momentum import KeyEncoder, require_queue, unit_rows
from transferbench.methods.parts.prototypes import Prototypes, require_clusters
from transferbench.methods.parts.queue import KeyQueue
from transferbench.methods.parts.requirements import require_batch, require_views
from transferbench.methods.parts.shuffle import groups_per_process, split_batch_norm


class PCLv1Settings(MethodSettings):
    """Settings of `pcl-v1`."""

    projector_output: int = Field(default=128, ge=1)
    """Width of queries, keys and prototypes."""
    queue_size: int = Field(default=16384, ge=1)
    """Keys in the queue, a multiple of the batch. At most half the images: else it still holds the
    image's own older keys."""
    temperature: float = Field(default=0.2, gt=0.0)
    """Divides the similarities with keys, and is the mean of the clusters' temperatures."""
    momentum: float = Field(default=0.999, ge=0.0, le=1.0)
    """Share of the key encoder that an update keeps (below 500 steps: 0.9)."""
    batch_norm_groups: int = Field(default=8, ge=1)
    """Groups of images, over all processes, that batch norm treats apart; 1 on one process lets
    the network tell pairs by their statistics."""
    warmup_epochs: int = Field(default=20, ge=0)
    """First epochs with keys only: early features cluster as noise does."""
    clusters: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(25000, 50000, 100000), min_length=1
    )
    """Clusters of each clustering: a 51st to a 13th of ImageNet's images."""
    prototype_negatives: int = Field(default=16384, ge=0)
    """Clusters drawn as negatives for the batch of a process, without replacement and without the
    batch's own; all that remain if they are fewer."""
    alpha: float = Field(default=10.0, gt=1.0)
    """Keeps small clusters from getting extreme temperatures. Percentile clipping does the same,
    but needs about 10 clusters to mean anything."""
    kmeans_iterations: int = Field(default=20, ge=1)
    """Of each start of k-means."""
    kmeans_restarts: int = Field(default=5, ge=1)
    """Starts of each clustering, of which the best counts."""
    kmeans_points: int = Field(default=1000, ge=1)
    """Most images for each cluster that k-means looks at; all images are assigned."""


class PCLv1(Method):
    """Contrast with a queue of keys and with clusters' prototypes (arXiv 2005.04966)."""

    Settings = PCLv1Settings
    shuffles_batch_norm = True

    def __init__(self, settings: PCLv1Settings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("pcl-v1", context, 2)
        require_batch("pcl-v1", context, 2)
        require_queue("pcl-v1", context, settings.queue_size)
        groups = groups_per_process("pcl-v1", context, settings.batch_norm_groups)
        split_batch_norm(self.backbone, groups)
        output = settings.projector_output
        self.projector = nn.Linear(self.num_features, output)
        self.key_encoder = KeyEncoder(self.backbone, self.projector, momentum=settings.momentum)
        self.queue = KeyQueue(settings.queue_size, output)
        self.prototypes = prototypes_of("pcl-v1", settings, context)

    def before_epoch(self, epoch: int, embed_all: EmbedAll, generator: torch.Generator) -> None:
        """Cluster the keys of all images anew, once the warm-up is over."""
        if epoch >= self.settings.warmup_epochs:
            self.prototypes.fit(embed_all, self.key_encoder, generator)

    def before_step(self, batch: BatchInfo) -> None:
        """Move the key encoder, before it gives this step's keys."""
        self.key_encoder.follow(self.backbone, self.projector)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "q" of the first view and "k" of the second, (B, projector_output) unit rows."""
        features = self.backbone(views[0])
        return {
            "q": unit_rows(self.projector(features)),
            "k": self.key_encoder.shuffled(views[1], batch.generator),
            "features": features.detach(),
        }

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean loss against the queue, plus that against the prototypes."""
        q, k = embeddings["q"], embeddings["k"]
        logits = info_nce_logits(q, k, self.queue.rows, self.settings.temperature)
        self.log("contrastive_top1", first_column_hits(logits))
        instance = first_column_loss(logits).mean()
        if batch.epoch < self.settings.warmup_epochs:
            return instance
        prototype, hits = self.prototypes.contrast(q, batch.indices, batch.generator)
        self.log("prototype_loss", prototype)
        self.log("prototype_top1", hits)
        self.log("usage_entropy", self.prototypes.usage_entropy())
        return instance + prototype

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Put the keys of all processes into the queue."""
        self.queue.replace_oldest(gather(embeddings["k"]))


def prototypes_of(method: str, settings: PCLv1Settings, context: Context) -> Prototypes:
    """Make the clusterings; refuse more clusters than images, and a warm-up that never ends."""
    require_clusters(method, context, settings.clusters)
    if settings.warmup_epochs >= context.epochs:
        raise UserError(
            f"settings.warmup_epochs: {method} clusters after {settings.warmup_epochs} epochs, but "
            f"the run has {context.epochs}: without prototypes it would be MoCo"
        )
    return Prototypes(
        context.num_images,
        settings.projector_output,
        settings.clusters,
        temperature=settings.temperature,
        alpha=settings.alpha,
        negatives=settings.prototype_negatives,
        search=KMeansSearch(
            settings.kmeans_iterations, settings.kmeans_restarts, settings.kmeans_points
        ),
    )
