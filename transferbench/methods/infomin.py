"""InfoMin: MoCo with views that share less, and a jigsaw puzzle that must find the same key.

What Makes for Good Views for Contrastive Learning? (arXiv 2005.10243); official code
HobbitLong/PyContrast.

Where paper and code differ: the paper studies views and trains in several settings, so the code's
preset "InfoMin" is followed throughout. Its stronger views (RandAugment, jitter of strength 0.8)
are the recipe's. Other than in MoCo, the key encoder moves after the optimizer. The puzzle's
embedding is a second query; its head has no momentum copy here, for the code never uses that.

Batch norm is never shared; images are normalised in groups, and keys change places between them,
as in `moco-v1`. A puzzle's patches are of its image's group. The code shuffles within a machine.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from transferbench.errors import UserError
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
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.jigsaw import (
    JigsawHead,
    cut_patches,
    draw_puzzles,
    require_puzzle,
)
from transferbench.methods.parts.momentum import KeyEncoder, unit_rows
from transferbench.methods.parts.queue import KeyQueue
from transferbench.methods.parts.requirements import require_batch, require_views
from transferbench.methods.parts.shuffle import groups_per_process, split_batch_norm


class InfoMinSettings(MethodSettings):
    """Settings of `infomin`."""

    projector_hidden: int | None = Field(default=None, ge=1)
    """Width of the hidden layer of both heads; default: the backbone's own (2048 for ResNet-50)."""
    projector_output: int = Field(default=128, ge=1)
    """Width of queries and keys."""
    queue_size: int = Field(default=65536, ge=1)
    """Keys K in the queue."""
    temperature: float = Field(default=0.15, gt=0.0)
    """Divides the cosine similarities."""
    momentum: float = Field(default=0.999, ge=0.0, le=1.0)
    """Share of the key encoder that an update keeps."""
    jigsaw_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """Beta: share of the puzzle's loss."""
    grid: int = Field(default=3, ge=2)
    """Cells of the puzzle along each side: of 85 pixels, for the third view has 255."""
    patch: int = Field(default=64, ge=1)
    """Side in pixels of the patch that is cut from each cell, at a random place."""
    batch_norm_groups: int = Field(default=8, ge=1)
    """Groups of images, over all processes, that batch norm treats apart; 1 on one process lets
    the network tell pairs by their statistics."""


class InfoMin(Method):
    """Momentum contrast of an image and of its puzzle with one queue (arXiv 2005.10243)."""

    Settings = InfoMinSettings
    shuffles_batch_norm = True

    def __init__(self, settings: InfoMinSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("infomin", context, 3)
        require_batch("infomin", context, 2)
        _require_queue(settings, context)
        grid, patch = settings.grid, settings.patch
        self.cell = require_puzzle("infomin", context, backbone, view=2, grid=grid, patch=patch)
        split_batch_norm(
            self.backbone, groups_per_process("infomin", context, settings.batch_norm_groups)
        )
        width, output = self.num_features, settings.projector_output
        hidden = settings.projector_hidden or width
        self.projector = mlp([width, hidden, output], norm=False)
        self.jigsaw = JigsawHead(width, output, grid**2, hidden=hidden)
        self.key_encoder = KeyEncoder(self.backbone, self.projector, momentum=settings.momentum)
        self.queue = KeyQueue(settings.queue_size, output)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "q" of the first view, "k" of the second and "q_jigsaw" of the puzzle.

        Each (B, projector_output), unit rows. Images and patches pass apart, with batch-norm
        statistics of their own.
        """
        first, second, puzzles = views
        keys = self.key_encoder.shuffled(second, batch.generator)
        features = self.backbone(first)
        return {
            "q": unit_rows(self.projector(features)),
            "k": keys,
            "q_jigsaw": self.embed_puzzles(puzzles, batch),
            "features": features.detach(),
        }

    def embed_puzzles(self, puzzles: Tensor, batch: BatchInfo) -> Tensor:
        """Cut puzzles (B, 3, S, S), run the patches, and join them in a random order, (B, D)."""
        grid, cell, patch = self.settings.grid, self.cell, self.settings.patch
        count, pieces = len(puzzles), grid**2
        offsets, orders = draw_puzzles(count, pieces, cell - patch, batch.generator)
        patches = cut_patches(puzzles, offsets, grid=grid, cell=cell, patch=patch)
        # Piece by piece, so that all patches of an image are of its batch-norm group.
        features = self.backbone(patches.transpose(0, 1).flatten(0, 1))
        by_image = features.unflatten(0, (pieces, count)).transpose(0, 1)
        embedded: Tensor = self.jigsaw(by_image, orders)
        return embedded

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the weighted sum of both queries' mean losses, with one key and one queue."""
        image, puzzle = (
            info_nce_logits(
                embeddings[query], embeddings["k"], self.queue.rows, self.settings.temperature
            )
            for query in ("q", "q_jigsaw")
        )
        self.log("contrastive_top1", first_column_hits(image))
        self.log("jigsaw_top1", first_column_hits(puzzle))
        weight: float = self.settings.jigsaw_weight
        costs = first_column_loss(image).mean(), first_column_loss(puzzle).mean()
        return (1 - weight) * costs[0] + weight * costs[1]

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Put the keys of all processes into the queue, then move the key encoder."""
        self.queue.replace_oldest(gather(embeddings["k"]))
        self.key_encoder.follow(self.backbone, self.projector)


def _require_queue(settings: InfoMinSettings, context: Context) -> None:
    if settings.queue_size < context.batch_size:
        raise UserError(
            f"settings.queue_size: {settings.queue_size} rows do not hold the keys of one batch "
            f"of {context.batch_size}"
        )
