"""PCL v2: PCL with MoCo v2's head and views.

Prototypical Contrastive Learning of Unsupervised Representations (arXiv 2005.04966); official code
salesforce/PCL with --mlp --aug-plus --cos.

What differs from `pcl-v1` is the head of two layers, without batch norm; clustered is its output,
not the backbone's. The views and the cosine schedule are the recipe's. What `pcl-v1` says of paper
and code holds here too.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from transferbench.methods.method import (
    BatchInfo,
    Context,
    EmbedAll,
    Embeddings,
    Method,
    Views,
)
from transferbench.methods.parts.collectives import gather
from transferbench.methods.parts.contrastive import (
    first_column_hits,
    first_column_loss,
    info_nce_logits,
)
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.momentum import KeyEncoder, require_queue, unit_rows
from transferbench.methods.parts.queue import KeyQueue
from transferbench.methods.parts.requirements import require_batch, require_views
from transferbench.methods.parts.shuffle import groups_per_process, split_batch_norm
from transferbench.methods.pcl_v1 import PCLv1Settings, prototypes_of


class PCLv2Settings(PCLv1Settings):
    """Settings of `pcl-v2`: those of `pcl-v1`, and the head's width."""

    projector_hidden: int | None = Field(default=None, ge=1)
    """Width of the head's hidden layer; default: the backbone's own (2048 for ResNet-50)."""


class PCLv2(Method):
    """PCL with MoCo v2's head (arXiv 2005.04966)."""

    Settings = PCLv2Settings
    shuffles_batch_norm = True

    def __init__(self, settings: PCLv2Settings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("pcl-v2", context, 2)
        require_batch("pcl-v2", context, 2)
        require_queue("pcl-v2", context, settings.queue_size)
        groups = groups_per_process("pcl-v2", context, settings.batch_norm_groups)
        split_batch_norm(self.backbone, groups)
        output = settings.projector_output
        hidden = settings.projector_hidden or self.num_features
        self.projector = mlp([self.num_features, hidden, output], norm=False)
        self.key_encoder = KeyEncoder(self.backbone, self.projector, momentum=settings.momentum)
        self.queue = KeyQueue(settings.queue_size, output)
        self.prototypes = prototypes_of("pcl-v2", settings, context)

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
