"""Supervised cross-entropy: the yardstick for every self-supervised method.

Deep Residual Learning for Image Recognition (arXiv 1512.03385); training as in pytorch/vision:
references/classification. The backbone learns under a linear classifier that is then dropped.

Where sources differ: the paper puts a bottleneck's stride into its first 1x1 convolution,
torchvision (and timm, whose networks are used here) into the 3x3. Label smoothing is that of
arXiv 1512.00567 sec. 7: every class, the true one too, receives e/K. Batch norm is local to each
process, as in the reference script; only gradients are averaged.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferbench.errors import UserError
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


class SupervisedSettings(MethodSettings):
    """Settings of `supervised`."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share e of the target that is spread evenly over all classes."""
    initialization: Literal["fan-out", "backbone"] = "fan-out"
    """"fan-out": a network with batch norm starts as torchvision's ResNets do; "backbone": as
    timm built it (which zeroes the last batch-norm scale of each residual block)."""
    classifier_hidden: int | None = Field(default=None, ge=1)
    """Width of a hidden layer in the classifier; default: none, the classifier is linear."""
    classifier_batch_norm: bool = True
    """Batch norm after the hidden layer."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping a hidden unit, or without a hidden layer a feature."""


class Supervised(Method):
    """Cross-entropy on labels (arXiv 1512.03385)."""

    Settings = SupervisedSettings
    reads_labels = True

    def __init__(self, settings: SupervisedSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("supervised", context, 1)
        require_batch("supervised", context, 2)
        if context.num_classes is None:
            raise UserError(
                "data: supervised needs labels, and this data set has none; "
                "take a labelled set or a self-supervised method"
            )
        if settings.initialization == "fan-out" and any(
            isinstance(module, _BatchNorm) for module in backbone.modules()
        ):
            backbone.apply(initialize_fan_out)
        self.classifier = classifier(self.num_features, context.num_classes, settings)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "logits" (B, classes)."""
        features = self.backbone(views[0])
        return {"logits": self.classifier(features), "features": features.detach()}

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean cross-entropy of this process's images."""
        if batch.labels is None:
            raise ValueError("the engine gave no labels to a method that reads them")
        logits = embeddings["logits"]
        self.log("top1", (logits.argmax(1) == batch.labels).float().mean())
        return cross_entropy(logits, batch.labels, self.settings.label_smoothing)


def classifier(features: int, classes: int, settings: SupervisedSettings) -> nn.Module:
    """Build the classifier, (B, features) to (B, classes)."""
    if settings.classifier_hidden is not None:
        return mlp(
            [features, settings.classifier_hidden, classes],
            norm=settings.classifier_batch_norm,
            dropout=settings.dropout,
        )
    if not settings.classifier_batch_norm:
        raise UserError(
            "settings.classifier_batch_norm: a linear classifier has no batch norm to leave out; "
            "give 'classifier_hidden'"
        )
    linear = nn.Linear(features, classes)
    return nn.Sequential(nn.Dropout(settings.dropout), linear) if settings.dropout else linear


@at_least_float32
def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy of logits (N, K) with (1 - e) onehot + e/K, labels (N,)."""
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def initialize_fan_out(module: nn.Module) -> None:
    """Initialise one layer as torchvision's ResNets do (arXiv 1502.01852).

    Convolutions (out, in, kh, kw): Normal with standard deviation sqrt(2 / (out kh kw)); batch
    norm: scale 1, shift 0.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, _BatchNorm) and module.affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
