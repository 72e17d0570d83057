"""BYOL: predict, from one view, what a slowly moving copy of the network says about the other.

Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning (arXiv 2006.07733); official
code google-deepmind/deepmind-research: byol/.

Where paper and code differ: as in the code, the last linear layers have no bias and the loss is
2 - 2 cos, both directions added (0 to 8; the paper's listing is 4 less). A zero vector stays zero
when it is normalised, as in the code. The target starts as a copy of the online network; drawing
it anew makes no difference (app. J). The code's online classifier, which shares nothing with the
representation, is left to evaluation. The views' asymmetry is the recipe's.
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
from transferbench.methods.parts.ema import frozen_copy, update_ema
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.requirements import require_batch, require_views
from transferbench.methods.parts.spread import output_spread
from transferbench.optim.schedules import cosine_momentum


class BYOLSettings(MethodSettings):
    """Settings of `byol`."""

    projector_hidden: int = Field(default=4096, ge=1)
    """Width of the projector's hidden layer."""
    projector_output: int = Field(default=256, ge=1)
    """Width of the projection, and of the prediction."""
    predictor_hidden: int = Field(default=4096, ge=1)
    """Width of the predictor's hidden layers."""
    predictor_layers: int = Field(default=2, ge=0)
    """Linear layers of the predictor (table 14a). 0: none, with which the network collapses
    (table 5b)."""
    tau_base: float = Field(default=0.996, ge=0.0, le=1.0)
    """Share of the target that an update keeps, at the first step (300 epochs: 0.99)."""
    constant_tau: bool = False
    """Keep tau at `tau_base` instead of raising it to 1 along a cosine. Table 5a's rows tau 1 (a
    random target) and tau 0 (the online network itself) are constant."""


class BYOL(Method):
    """Online network, predictor and moving-average target (arXiv 2006.07733)."""

    Settings = BYOLSettings
    global_batch_norm = True
    own_groups = ("predictor",)

    def __init__(self, settings: BYOLSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("byol", context, 2)
        require_batch("byol", context, 2)
        width, output = self.num_features, settings.projector_output
        self.projector = mlp([width, settings.projector_hidden, output], last_bias=False)
        self.predictor = predictor(settings)
        self.target_backbone = frozen_copy(self.backbone)
        self.target_projector = frozen_copy(self.projector)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "predictions" and "targets", (B, 2, projector_output) each, by view.

        Every view passes alone, with batch-norm statistics of its own. The target runs in
        training mode too and keeps its own running statistics.
        """
        features = [self.backbone(view) for view in views]
        predictions = [self.predictor(self.projector(h)) for h in features]
        with torch.no_grad():
            targets = [self.target_projector(self.target_backbone(view)) for view in views]
        return {
            "predictions": torch.stack(predictions, dim=1),
            "targets": torch.stack(targets, dim=1),
            "features": features[0].detach(),
        }

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean over images of both directions' squared distances, 0 to 8."""
        predictions, targets = embeddings["predictions"], embeddings["targets"].detach()
        # Each view predicts the target of the other.
        distances = squared_distance(predictions, targets.flip(1))
        self.log("prediction_similarity", 1 - distances.detach().mean() / 2)
        self.log("output_spread", output_spread(targets))
        self.log("tau", self.tau(batch))
        return distances.sum(1).mean()

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Move the target towards the online weights that the optimizer has just made."""
        tau = self.tau(batch)
        update_ema(self.target_backbone, self.backbone, tau)
        update_ema(self.target_projector, self.projector, tau)

    def tau(self, batch: BatchInfo) -> float:
        """Return the share of the target that this step's update keeps, in optimizer steps."""
        if self.settings.constant_tau:
            return float(self.settings.tau_base)
        return cosine_momentum(self.settings.tau_base, batch.step, batch.total_steps)


def predictor(settings: BYOLSettings) -> nn.Module:
    """Build the predictor, (B, projector_output) to the same."""
    if settings.predictor_layers == 0:
        return nn.Identity()
    output = settings.projector_output
    hidden = [settings.predictor_hidden] * (settings.predictor_layers - 1)
    return mlp([output, *hidden, output], last_bias=False)


@at_least_float32
def squared_distance(p: Tensor, z: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Return |n(p) - n(z)|² over the last axis, (..., D) to (...).

    n(x) = x / sqrt(max(|x|², epsilon)), so a zero prediction is 1 away (byol/utils/helpers.py).
    """
    return (_unit(p, epsilon) - _unit(z, epsilon)).square().sum(-1)


def _unit(x: Tensor, epsilon: float) -> Tensor:
    return x * x.square().sum(-1, keepdim=True).clamp(min=epsilon).rsqrt()
