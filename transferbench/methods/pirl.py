"""PIRL: an image and its jigsaw puzzle must both be recognised as that image.

Self-Supervised Learning of Pretext-Invariant Representations (arXiv 1912.01991); official code
facebookresearch/vissl; the weights that are compared everywhere come from HobbitLong/PyContrast.

Where paper and codes differ: by default the code of the released weights is followed, a softmax
over the positive and 65,536 sampled rows of the bank; the paper's noise-contrastive loss with
32,000 is `objective = "nce"`. With few images nothing need be sampled: `objective = "full"`, as
instance discrimination has it for CIFAR. Patches keep the colours of their image, their offsets go
up to cell - patch, and the projected features, not the patches, are permuted. The paper jitters
each patch on its own, VISSL's offsets end one earlier and its patches come permuted. With "nce" the
constant Z is estimated from the images' scores, so that a weight of 0 is instance discrimination;
VISSL takes those of the first branch that its configuration names.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
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
from transferbench.methods.parts.bank import (
    MemoryBank,
    NoiseContrast,
    bank_scores,
    softmax_loss,
)
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.jigsaw import (
    JigsawHead,
    cut_patches,
    draw_puzzles,
    require_puzzle,
)
from transferbench.methods.parts.precision import raise_half
from transferbench.methods.parts.requirements import require_batch, require_views


class PIRLSettings(MethodSettings):
    """Settings of `pirl`."""

    projector_output: int = Field(default=128, ge=1)
    """Width of the embeddings, and of a row of the bank."""
    projector_hidden: int | None = Field(default=None, ge=1)
    """Width of a hidden layer in both heads, before the projection (VISSL's mlphead: 2048)."""
    objective: Literal["softmax", "nce", "full"] = "softmax"
    """Softmax over sampled rows (released weights), noise-contrastive estimation (paper), or
    softmax over all rows, for few images."""
    negatives: int = Field(default=65536, ge=1)
    """Rows drawn for each image, with replacement (paper: 32,000); "full" draws none."""
    temperature: float = Field(default=0.07, gt=0.0)
    """Divides the cosine similarities (mlphead: 0.1)."""
    jigsaw_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """Lambda: share of the puzzle's loss. With 0 it is instance discrimination."""
    bank_momentum: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of a stored row that an update keeps."""
    nce_epsilon: float = Field(default=2.0**-23, ge=0.0)
    """Added to the noise in the denominators of "nce"."""
    grid: int = Field(default=3, ge=2)
    """Cells of the puzzle along each side: of 85 pixels, for the second view has 255."""
    patch: int = Field(default=64, ge=1)
    """Side in pixels of the patch that is cut from each cell, at a random place."""


class PIRL(Method):
    """Invariance to the jigsaw transformation by a memory bank (arXiv 1912.01991)."""

    Settings = PIRLSettings

    def __init__(self, settings: PIRLSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("pirl", context, 2)
        require_batch("pirl", context, 2)
        grid, patch = settings.grid, settings.patch
        self.cell = require_puzzle("pirl", context, backbone, view=1, grid=grid, patch=patch)
        width, hidden = settings.projector_output, settings.projector_hidden
        sizes = [self.num_features, *([hidden] if hidden else []), width]
        self.projector = mlp(sizes, norm=False)
        self.jigsaw = JigsawHead(self.num_features, width, grid**2, hidden=hidden)
        self.bank = MemoryBank(context.num_images, width, momentum=settings.bank_momentum)
        self.nce = NoiseContrast(context.num_images, epsilon=settings.nce_epsilon)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "f" of the image and "g" of the puzzle, (B, projector_output), unit rows.

        Images and patches pass apart, with batch-norm statistics of their own.
        """
        images, puzzles = views
        features = self.backbone(images)
        f = F.normalize(raise_half(self.projector(features)), dim=1)
        return {"f": f, "g": self.embed_puzzles(puzzles, batch), "features": features.detach()}

    def embed_puzzles(self, puzzles: Tensor, batch: BatchInfo) -> Tensor:
        """Cut puzzles (B, 3, S, S), run the patches, and join them in a random order, (B, D)."""
        grid, cell, patch = self.settings.grid, self.cell, self.settings.patch
        count, pieces = len(puzzles), grid**2
        offsets, orders = draw_puzzles(count, pieces, cell - patch, batch.generator)
        patches = cut_patches(puzzles, offsets, grid=grid, cell=cell, patch=patch)
        features = self.backbone(patches.flatten(0, 1)).unflatten(0, (count, pieces))
        g: Tensor = self.jigsaw(features, orders)
        return g

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the weighted sum of both branches' losses, against the same rows of the bank."""
        options, branches = self.settings, (embeddings["f"], embeddings["g"])
        costs: list[Tensor]
        if options.objective == "full":
            scores = [bank_scores(x, self.bank.rows, options.temperature) for x in branches]
            own = batch.indices
            costs = [softmax_loss(each, own) for each in scores]
        else:
            candidates = self.bank.candidates(batch.indices, options.negatives, batch.generator)
            scores = [self.bank.scores(x, candidates, options.temperature) for x in branches]
            own = torch.zeros_like(batch.indices)
            if options.objective == "nce":
                log_z = self.nce.estimate(scores[0])
                costs = [self.nce(each, log_z) for each in scores]
            else:
                costs = [softmax_loss(each) for each in scores]
        for name, each in zip(("contrastive_top1", "jigsaw_top1"), scores, strict=True):
            self.log(name, (each.argmax(1) == own).float().mean())
        weight: float = options.jigsaw_weight
        return (1 - weight) * costs[0] + weight * costs[1]

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Store the images' embeddings, never the puzzles', and Z if this was the first batch."""
        self.bank.update(embeddings["f"], batch.indices)
        self.nce.freeze()
