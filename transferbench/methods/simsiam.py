"""SimSiam: predict one view's projection from the other's, held constant, with one shared network.

Exploring Simple Siamese Representation Learning (arXiv 2011.10566); official code
facebookresearch/simsiam.

Where paper and code differ, the code is followed: the projector's last batch norm has neither scale
nor shift (paper: both; 68.1 against 68.2, table 3), and the linear layer before it keeps its bias,
untrained, in the state dict. The predictor's rate stays constant (sec. 4.3 on, and the released
command): its tensors, biases and norms included, are the parameter group "predictor", which the
recipe gives `fixed_lr`. Weight decay is on every parameter (app. A).
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
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.requirements import require_batch, require_views
from transferbench.methods.parts.spread import output_spread


class SimSiamSettings(MethodSettings):
    """Settings of `simsiam`."""

    projector_hidden: int | None = Field(default=None, ge=1)
    """Width of the projector's hidden layers; default: the backbone's own (2048 for ResNet-50)."""
    projector_output: int = Field(default=2048, ge=1)
    """Width d of the projection, and of the prediction."""
    projector_layers: int = Field(default=3, ge=1)
    """Linear layers of the projector (CIFAR: 2, app. D)."""
    predictor_hidden: int = Field(default=512, ge=1)
    """Width of the predictor's hidden layer: a bottleneck of d / 4."""
    stop_gradient: bool = True
    """Hold the predicted projection constant. Without it the network collapses (fig. 2)."""


class SimSiam(Method):
    """Shared encoder, bottleneck predictor and stop-gradient (arXiv 2011.10566)."""

    Settings = SimSiamSettings
    global_batch_norm = True
    own_groups = ("predictor",)

    def __init__(self, settings: SimSiamSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("simsiam", context, 2)
        require_batch("simsiam", context, 2)
        width, output = self.num_features, settings.projector_output
        hidden = [settings.projector_hidden or width] * (settings.projector_layers - 1)
        self.projector = mlp([width, *hidden, output], bias=False, last_norm="plain")
        # The batch norm behind it cancels this bias.
        last = self.projector[-2]
        assert isinstance(last, nn.Linear)
        last.bias.requires_grad_(False)
        self.predictor = mlp([output, settings.predictor_hidden, output], bias=False)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "p" and "z", (B, 2, projector_output) each, by view.

        Every view passes alone, with batch-norm statistics of its own.
        """
        features = [self.backbone(view) for view in views]
        projections = [self.projector(h) for h in features]
        predictions = [self.predictor(z) for z in projections]
        return {
            "p": torch.stack(predictions, dim=1),
            "z": torch.stack(projections, dim=1),
            "features": features[0].detach(),
        }

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return minus the mean cosine of predictions and the other view's projections, -1 to 1."""
        p, z = embeddings["p"], embeddings["z"]
        if self.settings.stop_gradient:
            z = z.detach()
        self.log("output_spread", output_spread(z))
        return negative_cosine(p, z.flip(1)).mean()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Name groups; "predictor" holds its biases and norms too, for they share its rate."""
        groups = super().parameter_groups()
        groups["predictor"] = list(self.predictor.parameters())
        own = {id(parameter) for parameter in groups["predictor"]}
        rest = [p for p in groups["bias-and-norm"] if id(p) not in own]
        return groups | {"bias-and-norm": rest}


@at_least_float32
def negative_cosine(p: Tensor, z: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Return -cos(p, z) over the last axis, (..., D) to (...); norms are at least epsilon."""
    return -F.cosine_similarity(p, z, dim=-1, eps=epsilon)
