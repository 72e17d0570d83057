"""SwAV: predict the balanced cluster code of one view from the other views.

Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (arXiv 2006.09882);
official code facebookresearch/swav.

Where paper and code differ, the code is followed: prototypes return to unit length before the
forward pass rather than after the update (the same but for the first step and the saved weights),
and the optimizer of the released weights is LARC without exclusions (the recipe's). Prototypes are
frozen for the first epoch as the paper says; the code's 313 iterations are one more step. The
queues exist from the start, zero, and are filled from the epoch in which the code creates them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
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
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.multicrop import embed_crops
from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.queue import is_full, push
from transferbench.methods.parts.requirements import require_batch
from transferbench.methods.parts.sinkhorn import sinkhorn


class SwAVSettings(MethodSettings):
    """Settings of `swav`."""

    projector_hidden: int = Field(default=2048, ge=1)
    """Width of the projector's hidden layer."""
    projector_output: int = Field(default=128, ge=1)
    """Width of the embedding, and of a prototype."""
    prototypes: int = Field(default=3000, ge=2)
    """Number of prototypes K."""
    temperature: float = Field(default=0.1, gt=0.0)
    """Divides the scores of the predicting views."""
    epsilon: float = Field(default=0.05, gt=0.0)
    """Divides the scores of the code views: smoothness of the codes."""
    sinkhorn_iterations: int = Field(default=3, ge=1)
    """Fewer than 3 fail to converge (app. C.4)."""
    code_views: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    """Which views give codes, counted from 0: the large crops."""
    queue_length: int = Field(default=0, ge=0)
    """Embeddings kept for the codes of a small batch, over all processes, rounded down to whole
    batches; 0: none (batch 4096). Published for batch 256: 3840."""
    queue_from_epoch: int = Field(default=15, ge=0)
    """The epoch, counted from 0, in which the queues begin to fill."""
    freeze_prototypes_epochs: int = Field(default=1, ge=0)
    """Prototypes are not updated during the first epochs ..."""
    freeze_prototypes_steps: int | None = Field(default=None, ge=0)
    """... or, if given, during the first steps (released weights: 313)."""


class SwAV(Method):
    """Swapped prediction of balanced codes, with multi-crop (arXiv 2006.09882)."""

    Settings = SwAVSettings
    global_batch_norm = True
    own_groups = ("prototypes",)
    queues: Tensor

    def __init__(self, settings: SwAVSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_batch("swav", context, 2)
        _require_code_views(settings, context)
        width, output = self.num_features, settings.projector_output
        self.projector = mlp([width, settings.projector_hidden, output])
        self.prototypes = nn.Linear(output, settings.prototypes, bias=False)
        rows = _queue_rows(settings, context)
        self.register_buffer("queues", torch.zeros(len(settings.code_views), rows, output))

    def before_step(self, batch: BatchInfo) -> None:
        """Bring the prototypes back to unit length, so that scores are cosines."""
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "z" (B, V, projector_output), unit rows.

        One backbone pass a resolution; the projector's batch norm mixes all crops.
        """
        z, features = embed_crops(self.backbone, self.projector, views)
        return {"z": z, "features": features}

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean over code views of what the other views' predictions of it cost."""
        scores = score(embeddings["z"], self.prototypes.weight)
        codes = self.codes(scores, batch)
        with torch.no_grad():
            if batch.step >= self.frozen_steps(batch):
                # Prototypes that have not moved yet tell nothing of a collapse.
                self.log("usage_entropy", _usage_entropy(scores))
            self.log("code_entropy", torch.special.entr(codes).sum(-1).mean())
        options = self.settings
        return swapped_prediction(scores, codes, options.code_views, options.temperature)

    @torch.no_grad()
    def codes(self, scores: Tensor, batch: BatchInfo) -> Tensor:
        """Balance the code views' scores (B, V, K), with a full queue's if there is one.

        Returns codes (A, B, K), rows summing to 1; constant.
        """
        used = self.queue_is_used(batch)
        codes = []
        for queue, view in zip(self.queues, self.settings.code_views, strict=True):
            own = scores[:, view]
            if used:
                # Old embeddings, today's prototypes.
                own = torch.cat([score(queue.to(own.dtype), self.prototypes.weight), own])
            balanced = sinkhorn(own, self.settings.epsilon, self.settings.sinkhorn_iterations)
            codes.append(balanced[-len(scores) :])
        return torch.stack(codes)

    def queue_is_used(self, batch: BatchInfo) -> bool:
        """Tell whether the queues are filled to their last row."""
        started = batch.epoch >= self.settings.queue_from_epoch and self.queues.shape[1] > 0
        return started and is_full(self.queues[0])

    def after_backward(self, batch: BatchInfo) -> None:
        """Cancel the prototypes' gradient while they are frozen: no momentum, no decay either."""
        if batch.step < self.frozen_steps(batch):
            self.prototypes.weight.grad = None

    def frozen_steps(self, batch: BatchInfo) -> int:
        """Return how many steps at the beginning leave the prototypes as they are."""
        steps: int | None = self.settings.freeze_prototypes_steps
        epochs: int = self.settings.freeze_prototypes_epochs
        return epochs * batch.steps_per_epoch if steps is None else steps

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Put this step's embeddings on top of the queues."""
        if self.queues.shape[1] and batch.epoch >= self.settings.queue_from_epoch:
            for queue, view in zip(self.queues, self.settings.code_views, strict=True):
                push(queue, embeddings["z"][:, view])


@at_least_float32
def score(z: Tensor, prototypes: Tensor) -> Tensor:
    """Return the cosines (..., K) of embeddings (..., D) with prototypes (K, D), all unit rows."""
    return z @ prototypes.T


@at_least_float32
def swapped_prediction(
    scores: Tensor, codes: Tensor, code_views: tuple[int, ...], temperature: float
) -> Tensor:
    """Return the swapped-prediction loss, a scalar (arXiv 2006.09882 eq. 2 and sec. 3.2).

    Parameters
    ----------
    scores : Tensor (B, V, K)
        Of every view.
    codes : Tensor (A, B, K)
        Of the code views; constants.
    code_views : tuple of A ints
        Which views the codes belong to. A code is predicted from every view but its own.
    temperature : float
        Divides the scores.
    """
    log_p = F.log_softmax(scores / temperature, dim=-1)
    total = scores.new_zeros(())
    for code, view in zip(codes, code_views, strict=True):
        others = [other for other in range(scores.shape[1]) if other != view]
        cost = -(code[:, None] * log_p[:, others]).sum(-1)
        total = total + cost.mean()
    return total / len(code_views)


@at_least_float32
def _usage_entropy(scores: Tensor) -> Tensor:
    """Entropy of how often each prototype is an embedding's nearest, over its maximum; 0 to 1."""
    nearest = scores.flatten(0, -2).argmax(-1)
    counts = torch.bincount(nearest, minlength=scores.shape[-1]).float()
    entropy: Tensor = torch.special.entr(counts / counts.sum()).sum()
    return entropy / math.log(min(len(nearest), scores.shape[-1]))


def _require_code_views(settings: SwAVSettings, context: Context) -> None:
    given = len(context.view_sizes)
    if given < 2:
        raise UserError(
            "views: swav predicts one view's code from another, so it needs at least 2 views of "
            f"an image, but the recipe's [[views]] give {given} (their counts added)"
        )
    views = settings.code_views
    if len(set(views)) < len(views) or not all(0 <= view < given for view in views):
        raise UserError(
            f"settings.code_views: {list(views)} must be different views out of 0 to {given - 1}"
        )


def _queue_rows(settings: SwAVSettings, context: Context) -> int:
    """Rows of one process's share of a queue."""
    if 0 < settings.queue_length < context.batch_size:
        raise UserError(
            f"settings.queue_length: {settings.queue_length} is less than one batch of "
            f"{context.batch_size}; take a multiple of the batch, or 0 for no queue"
        )
    whole = settings.queue_length - settings.queue_length % context.batch_size
    return whole // context.world_size
