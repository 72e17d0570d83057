"""MoCo v2: MoCo with SimCLR's head and views.

Improved Baselines with Momentum Contrastive Learning (arXiv 2003.04297); official code
facebookresearch/moco.

What differs from `moco-v1` is the head of two layers, without batch norm, and T 0.2; the views and
the cosine schedule are the recipe's. The sources agree.

The symmetric variant is the authors' notebook's (colab/moco_cifar10_demo.ipynb): each view is
query once and key once, the two losses are added (other libraries average them: half the
gradient), and both views' keys enter the queue after the step, the first view's first.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from transferbench.methods.method import BatchInfo, Context, Embeddings, Method, Views
from transferbench.methods.moco_v1 import MoCoV1Settings
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


class MoCoV2Settings(MoCoV1Settings):
    """Settings of `moco-v2`: those of `moco-v1`, the head's width and the symmetric variant."""

    projector_hidden: int | None = Field(default=None, ge=1)
    """Width of the head's hidden layer; default: the backbone's own (2048 for ResNet-50)."""
    temperature: float = Field(default=0.2, gt=0.0)
    """Divides the cosine similarities."""
    symmetric: bool = False
    """Let each view be query and key. The queue then takes two keys of an image, so its size must
    be a multiple of twice the batch."""


class MoCoV2(Method):
    """Contrast of an MLP head's output with a queue of momentum keys (arXiv 2003.04297)."""

    Settings = MoCoV2Settings
    shuffles_batch_norm = True

    def __init__(self, settings: MoCoV2Settings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("moco-v2", context, 2)
        require_batch("moco-v2", context, 2)
        require_queue("moco-v2", context, settings.queue_size, 2 if settings.symmetric else 1)
        groups = groups_per_process("moco-v2", context, settings.batch_norm_groups)
        split_batch_norm(self.backbone, groups)
        hidden = settings.projector_hidden or self.num_features
        self.projector = mlp([self.num_features, hidden, settings.projector_output], norm=False)
        self.key_encoder = KeyEncoder(self.backbone, self.projector, momentum=settings.momentum)
        self.queue = KeyQueue(settings.queue_size, settings.projector_output)

    def before_step(self, batch: BatchInfo) -> None:
        """Move the key encoder, before it gives this step's keys."""
        self.key_encoder.follow(self.backbone, self.projector)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return unit rows "q" of the query views and "k" of the key views, (B, V, output).

        V is 1, the first view for queries and the second for keys, or 2: both for both. Every view
        passes alone, with batch-norm statistics of its own.
        """
        both = self.settings.symmetric
        features = [self.backbone(view) for view in (views if both else views[:1])]
        queries = [unit_rows(self.projector(h)) for h in features]
        keys = [
            self.key_encoder.shuffled(view, batch.generator)
            for view in (views if both else views[1:])
        ]
        return {
            "q": torch.stack(queries, dim=1),
            "k": torch.stack(keys, dim=1),
            "features": features[0].detach(),
        }

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean over images of the loss against the queue, directions added."""
        q = embeddings["q"]
        # The positive of one view is the key of the other.
        k = embeddings["k"].flip(1)
        logits = info_nce_logits(
            q.flatten(0, 1), k.flatten(0, 1), self.queue.rows, self.settings.temperature
        )
        self.log("contrastive_top1", first_column_hits(logits))
        return first_column_loss(logits).view(q.shape[:2]).sum(1).mean()

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Put the keys of all processes into the queue, view by view."""
        self.queue.replace_oldest(gather(embeddings["k"]).transpose(0, 1).flatten(0, 1))
