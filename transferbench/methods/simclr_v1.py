"""SimCLR: each view must find its partner among all other views of a large batch.

A Simple Framework for Contrastive Learning of Visual Representations (arXiv 2002.05709); official
code google-research/simclr.

Where paper and code differ: the head is the code's (linear layers without bias, weights
Normal(0, 0.01), batch norm after each, the last with scale only), not the paper's W2 relu(W1 h).
The loss is the paper's mean over all 2N views; the code returns the sum of the two views' means,
twice as much. The views' brightness is additive in v1 and weight decay 1e-6; both are the recipe's.
"""

from __future__ import annotations

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
from transferbench.methods.parts.contrastive import nt_xent_logits
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.requirements import require_batch, require_views


class SimCLRv1Settings(MethodSettings):
    """Settings of `simclr-v1`."""

    temperature: float = Field(default=0.1, gt=0.0)
    """Divides the cosine similarities. CIFAR-size images do best with 0.5 (app. B.9)."""
    projector_hidden: int | None = Field(default=None, ge=1)
    """Width of the head's hidden layers; default: the backbone's own (2048 for ResNet-50)."""
    projector_output: int = Field(default=128, ge=1)
    """Width of the head's output."""
    projector_layers: int = Field(default=2, ge=1)
    """Linear layers of the head: 2 in v1 (the code's default of 3 is v2)."""


class SimCLRv1(Method):
    """NT-Xent over both views of the whole batch (arXiv 2002.05709)."""

    Settings = SimCLRv1Settings
    global_batch_norm = True

    def __init__(self, settings: SimCLRv1Settings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        # One pass for both views: batch-norm statistics cover them together.
        require_views("simclr-v1", context, 2, one_size=True)
        require_batch("simclr-v1", context, 2)
        self.projector = projection_head(self.num_features, settings)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "z" (B, 2, projector_output), not normalised."""
        features = self.backbone(torch.cat(views))
        z = torch.stack(self.projector(features).chunk(2), dim=1)
        return {"z": z, "features": features[: len(z)].detach()}

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean NT-Xent loss of this process's 2 B views against all processes'."""
        first, second = embeddings["z"].unbind(1)
        logits, positives = nt_xent_logits(first, second, self.settings.temperature)
        with torch.no_grad():
            similarity = F.cosine_similarity(first.float(), second.float())
            self.log("positive_similarity", similarity.mean())
            self.log("contrastive_top1", (logits.argmax(1) == positives).float().mean())
        return F.cross_entropy(logits, positives)


def projection_head(features: int, settings: SimCLRv1Settings) -> nn.Sequential:
    """Build the head, (B, features) to (B, projector_output)."""
    hidden = settings.projector_hidden or features
    return mlp(
        [features, *[hidden] * (settings.projector_layers - 1), settings.projector_output],
        bias=False,
        last_bias=False,
        last_norm="scale",
        weight_std=0.01,
    )
