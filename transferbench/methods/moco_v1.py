"""MoCo: each query must find its key among a queue of keys from earlier batches.

Momentum Contrast for Unsupervised Visual Representation Learning (arXiv 1911.05722); official code
facebookresearch/moco.

Where paper and code differ: the key encoder moves before the keys are computed, as in the code
(paper, algorithm 1: after the optimizer; the same sequence of weights, but a checkpoint holds a
key encoder that lags by one update).

Batch norm is never shared. The eight devices of the paper are groups of images that are normalised
apart, queries and keys alike; the keys change places between all of them (`parts.shuffle`). On
eight processes each is one group, as in the code; on one process the groups are those of the
authors' notebook (colab/moco_cifar10_demo.ipynb).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from transferbench.methods.method import (
    BatchInfo,
    Context,
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
from transferbench.methods.parts.momentum import KeyEncoder, require_queue, unit_rows
from transferbench.methods.parts.queue import KeyQueue
from transferbench.methods.parts.requirements import require_batch, require_views
from transferbench.methods.parts.shuffle import groups_per_process, split_batch_norm


class MoCoV1Settings(MethodSettings):
    """Settings of `moco-v1`."""

    projector_output: int = Field(default=128, ge=1)
    """Width of queries and keys."""
    queue_size: int = Field(default=65536, ge=1)
    """Keys K in the queue, a multiple of the batch. At most half the images: else it still holds
    the image's own older keys."""
    temperature: float = Field(default=0.07, gt=0.0)
    """Divides the cosine similarities."""
    momentum: float = Field(default=0.999, ge=0.0, le=1.0)
    """Share of the key encoder that an update keeps (below 500 steps: 0.9)."""
    batch_norm_groups: int = Field(default=8, ge=1)
    """Groups of images, over all processes, that batch norm treats apart; 1 on one process lets
    the network tell pairs by their statistics."""


class MoCoV1(Method):
    """Contrast with a queue of momentum keys (arXiv 1911.05722)."""

    Settings = MoCoV1Settings
    shuffles_batch_norm = True

    def __init__(self, settings: MoCoV1Settings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("moco-v1", context, 2)
        require_batch("moco-v1", context, 2)
        require_queue("moco-v1", context, settings.queue_size)
        groups = groups_per_process("moco-v1", context, settings.batch_norm_groups)
        split_batch_norm(self.backbone, groups)
        self.projector = nn.Linear(self.num_features, settings.projector_output)
        self.key_encoder = KeyEncoder(self.backbone, self.projector, momentum=settings.momentum)
        self.queue = KeyQueue(settings.queue_size, settings.projector_output)

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
        """Return the mean loss of this process's queries against the queue as it is."""
        logits = info_nce_logits(
            embeddings["q"], embeddings["k"], self.queue.rows, self.settings.temperature
        )
        self.log("contrastive_top1", first_column_hits(logits))
        return first_column_loss(logits).mean()

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Put the keys of all processes into the queue."""
        self.queue.replace_oldest(gather(embeddings["k"]))
