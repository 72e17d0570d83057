"""VICReg: views agree, while every dimension of a batch keeps its spread and says its own thing.

Variance-Invariance-Covariance Regularization (arXiv 2105.04906); official code
facebookresearch/vicreg. Where paper and code differ, the code is followed: the distance is a mean
over dimensions, and the variance term a mean over the two views.
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
from transferbench.methods.parts.collectives import gather
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.requirements import require_batch, require_views


class VICRegSettings(MethodSettings):
    """Settings of `vicreg`."""

    invariance: float = Field(default=25.0, ge=0.0)
    """Weight of the distance between views."""
    variance: float = Field(default=25.0, ge=0.0)
    """Weight of what dimensions lack to a standard deviation of 1."""
    covariance: float = Field(default=1.0, ge=0.0)
    """Weight of what dimensions have in common."""
    expander: int = Field(default=8192, ge=1)
    """Width of the three layers on top of the backbone."""


class VICReg(Method):
    """Variance, invariance and covariance (arXiv 2105.04906)."""

    Settings = VICRegSettings
    global_batch_norm = True

    def __init__(self, settings: VICRegSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("vicreg", context, 2)
        require_batch("vicreg", context, 2)
        self.expander = mlp([self.num_features, *[settings.expander] * 3], last_bias=False)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "z" (B, 2, expander)."""
        features = [self.backbone(view) for view in views]
        z = torch.stack([self.expander(h) for h in features], dim=1)
        return {"z": z, "features": features[0].detach()}

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the weighted sum of the three terms, the last two over all processes' images."""
        first, second = embeddings["z"].unbind(1)
        invariance = F.mse_loss(first, second)
        variance, covariance = regularizers(gather(embeddings["z"]))
        self.log("invariance", invariance)
        self.log("variance", variance)
        self.log("covariance", covariance)
        weights = self.settings
        total: Tensor = (
            weights.invariance * invariance
            + weights.variance * variance
            + weights.covariance * covariance
        )
        return total


@at_least_float32
def regularizers(z: Tensor, epsilon: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Return the variance term (mean over views) and the covariance term (sum) of z (N, 2, D)."""
    centered = z - z.mean(0)
    scale = (centered.var(0) + epsilon).sqrt()
    covariances = torch.einsum("nvd,nve->vde", centered, centered) / (len(z) - 1)
    off_diagonal = covariances.square().sum() - covariances.diagonal(0, 1, 2).square().sum()
    return F.relu(1 - scale).mean(), off_diagonal / z.shape[-1]
