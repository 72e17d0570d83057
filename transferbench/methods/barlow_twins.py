"""Barlow Twins: the correlations between two views' embeddings should be the identity matrix.

Barlow Twins: Self-Supervised Learning via Redundancy Reduction (arXiv 2103.03230); official code
facebookresearch/barlowtwins.

Where paper and code differ, the code is followed, of which the released weights are: columns are
divided by the biased standard deviation with epsilon in the root (the paper's listing: unbiased,
no epsilon, so its matrix is (N - 1) / N times this one), and lambda is 0.0051 (paper: 0.005). One
thing is not the code's: its all-reduce leaves each process a gradient that, averaged, is 1 / W of
the true one, which LARS forgives for weights alone; here the gradient is the true one. N is the
number of images there are, not the nominal batch.
"""

from __future__ import annotations

import torch
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
from transferbench.methods.parts.collectives import sum_over_processes, world_size
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.requirements import require_batch, require_views


class BarlowTwinsSettings(MethodSettings):
    """Settings of `barlow-twins`."""

    projector_hidden: int = Field(default=8192, ge=1)
    """Width of the projector's hidden layers."""
    projector_output: int = Field(default=8192, ge=2)
    """Width D of the embedding; the loss costs N D^2."""
    projector_layers: int = Field(default=3, ge=1)
    """Linear layers of the projector."""
    off_diagonal_weight: float = Field(default=0.0051, gt=0.0)
    """Lambda: weighs redundancy against invariance; 0.002 to 0.02 changes little (fig. 5)."""
    loss_scale: float = Field(default=1.0, gt=0.0)
    """Multiplies the loss, which is a sum over D^2 entries (solo-learn: 0.1)."""


class BarlowTwins(Method):
    """Cross-correlation of both views driven to the identity (arXiv 2103.03230)."""

    Settings = BarlowTwinsSettings
    global_batch_norm = True

    def __init__(
        self, settings: BarlowTwinsSettings, backbone: nn.Module, context: Context
    ) -> None:
        super().__init__(settings, backbone, context)
        require_views("barlow-twins", context, 2)
        require_batch("barlow-twins", context, 2)
        hidden = [settings.projector_hidden] * (settings.projector_layers - 1)
        sizes = [self.num_features, *hidden, settings.projector_output]
        self.projector = mlp(sizes, bias=False, last_bias=False)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "z" (B, 2, projector_output), not normalised.

        Every view passes alone, with batch-norm statistics of its own.
        """
        features = [self.backbone(view) for view in views]
        z = [self.projector(h) for h in features]
        return {"z": torch.stack(z, dim=1), "features": features[0].detach()}

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return how far the correlations over all processes' images are from the identity."""
        first, second = embeddings["z"].unbind(1)
        c = cross_correlation(first, second)
        invariance, redundancy = distances_from_identity(c)
        with torch.no_grad():
            self.log("invariance", invariance / len(c))
            self.log("redundancy", redundancy / len(c))
            self.log("diagonal", c.diagonal().mean())
        total = invariance + self.settings.off_diagonal_weight * redundancy
        scaled: Tensor = self.settings.loss_scale * total
        return scaled


@at_least_float32
def cross_correlation(z1: Tensor, z2: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return the correlations (D, D) of the columns of z1 with those of z2, (B, D) each.

    Means, variances and products go over the images of all processes.
    """
    images = len(z1) * world_size()
    first, second = _standardized(z1, images, epsilon), _standardized(z2, images, epsilon)
    return sum_over_processes(first.T @ second / images)


def _standardized(z: Tensor, images: int, epsilon: float) -> Tensor:
    """Bring columns to mean 0 and variance 1; a constant one becomes 0, thanks to epsilon."""
    centered = z - sum_over_processes(z.sum(0)) / images
    variance = sum_over_processes(centered.square().sum(0)) / images
    return centered * (variance + epsilon).rsqrt()


def distances_from_identity(c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distances from 1 on the diagonal of c (D, D) and from 0 off it, summed."""
    diagonal = torch.eye(len(c), dtype=torch.bool, device=c.device)
    return (c.diagonal() - 1).square().sum(), c.masked_fill(diagonal, 0).square().sum()
