"""Instance discrimination: recognise each image among all images, by a bank of stored features.

Unsupervised Feature Learning via Non-Parametric Instance Discrimination (arXiv 1805.01978);
official code zhirongw/lemniscate.pytorch; the weights that are compared everywhere come from
HobbitLong/PyContrast.

Where paper and codes differ: by default the code of the released weights is followed, a softmax
over the positive and 65,536 sampled rows of a bank that starts as random unit rows. The paper's
loss (`objective = "nce"`) tells the positive from 4096 rows of noise; the constant Z is, as in its
code, n times the mean of exp(score) over the first batch, positives included, and then frozen. With
`objective = "full"` nothing is sampled, as the code does for CIFAR. The paper's proximal term is an
option; neither code has it, for the momentum of the bank plays its part.
"""

from __future__ import annotations

from typing import Literal

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
from transferbench.methods.parts.precision import raise_half
from transferbench.methods.parts.requirements import require_batch, require_views


class InsDisSettings(MethodSettings):
    """Settings of `insdis`."""

    projector_output: int = Field(default=128, ge=1)
    """Width of the embedding, and of a row of the bank."""
    objective: Literal["softmax", "nce", "full"] = "softmax"
    """Softmax over sampled rows (released weights), noise-contrastive estimation (paper), or
    softmax over all rows."""
    negatives: int = Field(default=65536, ge=1)
    """Rows drawn for each image, with replacement (paper: 4096); "full" draws none."""
    temperature: float = Field(default=0.07, gt=0.0)
    """Divides the cosine similarities (CIFAR: 0.1)."""
    bank_momentum: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of a stored row that an update keeps."""
    nce_epsilon: float = Field(default=1e-7, ge=0.0)
    """Added to the noise in the denominators of "nce"."""
    proximal: float = Field(default=0.0, ge=0.0)
    """Weight of the squared distance between an image's embedding and its row (paper: 30)."""


class InsDis(Method):
    """Non-parametric instance discrimination with a memory bank (arXiv 1805.01978)."""

    Settings = InsDisSettings

    def __init__(self, settings: InsDisSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("insdis", context, 1)
        require_batch("insdis", context, 2)
        width = settings.projector_output
        self.projector = nn.Linear(self.num_features, width)
        self.bank = MemoryBank(context.num_images, width, momentum=settings.bank_momentum)
        self.nce = NoiseContrast(context.num_images, epsilon=settings.nce_epsilon)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "f" (B, projector_output), unit rows."""
        features = self.backbone(views[0])
        f = F.normalize(raise_half(self.projector(features)), dim=1)
        return {"f": f, "features": features.detach()}

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean over images of what it costs to find its row in the bank as it is."""
        f, options = embeddings["f"], self.settings
        if options.objective == "full":
            scores = bank_scores(f, self.bank.rows, options.temperature)
            self.log("contrastive_top1", (scores.argmax(1) == batch.indices).float().mean())
            loss = softmax_loss(scores, batch.indices)
        else:
            candidates = self.bank.candidates(batch.indices, options.negatives, batch.generator)
            scores = self.bank.scores(f, candidates, options.temperature)
            self.log("contrastive_top1", (scores.argmax(1) == 0).float().mean())
            if options.objective == "nce":
                loss = self.nce(scores, self.nce.estimate(scores))
            else:
                loss = softmax_loss(scores)
        if options.proximal:
            loss = loss + options.proximal * proximal(f, self.bank.rows[batch.indices]).mean()
        return loss

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Store the embeddings, and Z if this was the first batch."""
        self.bank.update(embeddings["f"], batch.indices)
        self.nce.freeze()


def proximal(new: Tensor, old: Tensor) -> Tensor:
    """Return the squared distance (B,) of embeddings from stored rows, (B, D) each (eq. 10)."""
    return (new - old).square().sum(1)
