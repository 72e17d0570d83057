"""MoCo v3: each view must find its momentum key among those of all other images of a large batch.

An Empirical Study of Training Self-Supervised Vision Transformers (arXiv 2104.02057); official code
facebookresearch/moco-v3.

Where paper and code differ, the code is followed: the key network moves before the keys are
computed (paper: after the optimizer), and on a ResNet the predictor's last layer has no batch norm
(paper: every layer has). Its momentum is a cosine of the fractional epoch.

On a ViT the patch embedding stays as drawn, positions are fixed sine-cosine codes, the projector
has a layer more and the predictor's last layer has batch norm. A network without layer norm counts
as a ResNet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer
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
from transferbench.methods.parts.collectives import gather, rank
from transferbench.methods.parts.ema import frozen_copy, update_ema
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.requirements import require_batch, require_views
from transferbench.methods.parts.vit import (
    fix_positions,
    initialize_linear,
    initialize_patch_embedding,
    require_vit,
)
from transferbench.optim.schedules import cosine_momentum


class MoCoV3Settings(MethodSettings):
    """Settings of `moco-v3`."""

    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the cosine similarities (ResNet-50: 1.0; ViT: 0.2)."""
    momentum: float = Field(default=0.99, ge=0.0, le=1.0)
    """Share of the key network that an update keeps, at first (ResNet-50, 1000 epochs: 0.996)."""
    projector_hidden: int = Field(default=4096, ge=1)
    """Width of the projector's hidden layers: one on a ResNet, two on a ViT."""
    projector_output: int = Field(default=256, ge=1)
    """Width of the projection, and of the prediction."""
    predictor_hidden: int = Field(default=4096, ge=1)
    """Width of the predictor's hidden layer."""
    freeze_patch_embedding: bool = True
    """On a ViT: leave the patch embedding as it is drawn (sec. 4, stability)."""


class MoCoV3(Method):
    """Symmetric contrast with momentum keys of the batch (arXiv 2104.02057)."""

    Settings = MoCoV3Settings
    global_batch_norm = True
    own_groups = ("predictor",)

    def __init__(self, settings: MoCoV3Settings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("moco-v3", context, 2)
        require_batch("moco-v3", context, 2)
        vit = _is_vit(backbone)
        if vit:
            _prepare_vit(require_vit("moco-v3", backbone), settings.freeze_patch_embedding)
        hidden, output = settings.projector_hidden, settings.projector_output
        self.projector = mlp(
            [self.num_features, *[hidden] * (2 if vit else 1), output],
            bias=False,
            last_bias=False,
            last_norm="plain",
        )
        self.predictor = mlp(
            [output, settings.predictor_hidden, output],
            bias=False,
            last_bias=False,
            last_norm="plain" if vit else "none",
        )
        self.key_backbone = frozen_copy(self.backbone)
        self.key_projector = frozen_copy(self.projector)

    def before_step(self, batch: BatchInfo) -> None:
        """Move the key network, before it gives this step's keys."""
        momentum = self.momentum(batch)
        update_ema(self.key_backbone, self.backbone, momentum)
        update_ema(self.key_projector, self.projector, momentum)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "queries" and "keys", (B, 2, projector_output) each, by view, not normalised.

        Every view passes alone, with batch-norm statistics of its own.
        """
        features = [self.backbone(view) for view in views]
        queries = [self.predictor(self.projector(h)) for h in features]
        with torch.no_grad():
            keys = [self.key_projector(self.key_backbone(view)) for view in views]
        return {
            "queries": torch.stack(queries, dim=1),
            "keys": torch.stack(keys, dim=1),
            "features": features[0].detach(),
        }

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the sum of both directions' contrast with the keys of all processes."""
        q1, q2 = embeddings["queries"].unbind(1)
        k1, k2 = embeddings["keys"].detach().unbind(1)
        temperature = self.settings.temperature
        first, hits = contrast(q1, k2, temperature)
        second, more_hits = contrast(q2, k1, temperature)
        self.log("contrastive_top1", (hits + more_hits) / 2)
        self.log("momentum", self.momentum(batch))
        return first + second

    def momentum(self, batch: BatchInfo) -> float:
        """Return the share of the key network that this step's update keeps."""
        epoch = batch.step / batch.steps_per_epoch
        epochs = batch.total_steps / batch.steps_per_epoch
        return cosine_momentum(self.settings.momentum, epoch, epochs)


@at_least_float32
def contrast(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Let each query find the key of its image among the keys of all processes.

    Parameters
    ----------
    queries, keys : Tensor (B, D)
        Not normalised, of this process's images; the keys are constants.
    temperature : float
        Divides the cosine similarities, and scales the loss.

    Returns
    -------
    loss : Tensor ()
        2 T times the mean cross-entropy (arXiv 2104.02057 alg. 1).
    hits : Tensor ()
        Share of queries whose nearest key is their own.
    """
    all_keys = gather(F.normalize(keys, dim=1))
    logits = F.normalize(queries, dim=1) @ all_keys.T / temperature
    own = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
    hits = (logits.detach().argmax(1) == own).float().mean()
    return 2 * temperature * F.cross_entropy(logits, own), hits


def _is_vit(backbone: nn.Module) -> bool:
    """Tell a ViT from the ResNet family; refuse what is neither."""
    if isinstance(backbone, VisionTransformer):
        return True
    if any(isinstance(module, nn.LayerNorm) for module in backbone.modules()):
        raise UserError(
            "backbone.name: moco-v3 knows networks with batch norm (resnet50 ...) and timm's "
            f"VisionTransformer (vit_small_patch16_224 ...), not a {type(backbone).__name__}"
        )
    return False


def _prepare_vit(vit: VisionTransformer, freeze: bool) -> None:
    """Draw the weights as facebookresearch/moco-v3: vits.py does."""
    fix_positions(vit, first="row")
    initialize_linear(vit, split_qkv=True)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)
    initialize_patch_embedding(vit)
    patches = vit.patch_embed.proj
    if patches.bias is not None:
        nn.init.zeros_(patches.bias)
    patches.requires_grad_(not freeze)
