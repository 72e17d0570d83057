"""SimCLR v2: SimCLR with a deeper head, whose first layer stays for fine-tuning.

Big Self-Supervised Models are Strong Semi-Supervised Learners (arXiv 2006.10029); official code
google-research/simclr.

Head and loss are those of `simclr-v1`, with three layers instead of two: the mean over all 2N
views (the code's number is twice that). Brightness is multiplicative and weight decay 1e-4 in v2;
both are the recipe's. Frozen features are the backbone's; fine-tuning starts behind the head's
first layer (`fine_tuning_network`, the code's ft_proj_selector).

The memory of momentum keys is the paper's alone: the code does not have it, and does not say
whether the released ResNet-50 used it, so it is off. With it the loss is MoCo's, each view against
the momentum key of the other and the stored keys, both directions averaged; the momentum network
moves before the keys are computed and both views' keys are stored after the step, as in MoCo.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.methods.method import BatchInfo, Context, Embeddings, Method, Views
from transferbench.methods.parts.collectives import gather
from transferbench.methods.parts.contrastive import info_nce, nt_xent_logits
from transferbench.methods.parts.ema import frozen_copy, update_ema
from transferbench.methods.parts.queue import push
from transferbench.methods.parts.requirements import require_batch, require_views
from transferbench.methods.simclr_v1 import SimCLRv1Settings, projection_head


class SimCLRv2Settings(SimCLRv1Settings):
    """Settings of `simclr-v2`: those of `simclr-v1`, and the memory's."""

    projector_layers: int = Field(default=3, ge=1)
    """Linear layers of the head."""
    memory_size: int = Field(default=0, ge=0)
    """Momentum keys kept as further negatives, over all processes; 0: none (paper: 65536)."""
    memory_momentum: float = Field(default=0.999, ge=0.0, le=1.0)
    """Share of the momentum network that an update keeps."""


class SimCLRv2(Method):
    """NT-Xent with a three-layer head, optionally with a memory (arXiv 2006.10029)."""

    Settings = SimCLRv2Settings
    global_batch_norm = True
    memory: Tensor

    def __init__(self, settings: SimCLRv2Settings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        # One pass for both views: batch-norm statistics cover them together.
        require_views("simclr-v2", context, 2, one_size=True)
        require_batch("simclr-v2", context, 2)
        self.projector = projection_head(self.num_features, settings)
        if not settings.memory_size:
            return
        if settings.memory_size < 2 * context.batch_size:
            raise UserError(
                f"settings.memory_size: {settings.memory_size} is less than the "
                f"{2 * context.batch_size} keys that one batch of {context.batch_size} gives; "
                "take more, or 0 for no memory"
            )
        self.momentum_backbone = frozen_copy(self.backbone)
        self.momentum_projector = frozen_copy(self.projector)
        keys = torch.randn(settings.memory_size, settings.projector_output)
        self.register_buffer("memory", F.normalize(keys, dim=1))

    def before_step(self, batch: BatchInfo) -> None:
        """Move the momentum network towards the weights that give this step's queries."""
        if self.settings.memory_size:
            decay = self.settings.memory_momentum
            update_ema(self.momentum_backbone, self.backbone, decay)
            update_ema(self.momentum_projector, self.projector, decay)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "z", and with a memory "keys", (B, 2, projector_output) each, not normalised."""
        images = torch.cat(views)
        features = self.backbone(images)
        z = torch.stack(self.projector(features).chunk(2), dim=1)
        embeddings = {"z": z, "features": features[: len(z)].detach()}
        if self.settings.memory_size:
            with torch.no_grad():
                keys = self.momentum_projector(self.momentum_backbone(images))
            embeddings["keys"] = torch.stack(keys.chunk(2), dim=1)
        return embeddings

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean loss of this process's 2 B views."""
        first, second = embeddings["z"].unbind(1)
        with torch.no_grad():
            similarity = F.cosine_similarity(first.float(), second.float())
            self.log("positive_similarity", similarity.mean())
        if self.settings.memory_size:
            return self.memory_loss(embeddings)
        logits, positives = nt_xent_logits(first, second, self.settings.temperature)
        with torch.no_grad():
            self.log("contrastive_top1", (logits.argmax(1) == positives).float().mean())
        return F.cross_entropy(logits, positives)

    def memory_loss(self, embeddings: Embeddings) -> Tensor:
        """Return the InfoNCE loss against the stored keys, the mean of both directions."""
        queries = F.normalize(embeddings["z"], dim=-1)
        # Each view's positive is the momentum key of the other.
        keys = F.normalize(embeddings["keys"], dim=-1).detach().flip(1)
        temperature = self.settings.temperature
        return info_nce(queries.flatten(0, 1), keys.flatten(0, 1), self.memory, temperature).mean()

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Put the keys of both views, of all processes' images, on top of the memory."""
        if self.settings.memory_size:
            push(self.memory, gather(F.normalize(embeddings["keys"], dim=-1)).flatten(0, 1))

    def fine_tuning_network(self, layers: int = 1) -> nn.Sequential:
        """Return what fine-tuning starts from, images (B, 3, S, S) to (B, width), sharing weights.

        The backbone and the first `layers` of the head: 0 is the backbone alone, 1 what the paper
        takes for few labels.
        """
        return nn.Sequential(self.backbone, first_layers(self.projector, layers))


def first_layers(head: nn.Sequential, layers: int) -> nn.Sequential:
    """Return the first layers of a `projection_head`: linear, batch norm and ReLU each."""
    ends = [i for i, module in enumerate(head) if isinstance(module, nn.Linear)] + [len(head)]
    return head[: ends[layers]]
