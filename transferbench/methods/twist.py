"""TWIST: views of an image agree on its class, surely, while the batch uses all classes.

Self-Supervised Learning by Estimating Twin Class Distributions (arXiv 2110.07402); official code
bytedance/TWIST.

Where paper and code differ: logarithms are exact as in the paper, `epsilon` puts the code's 1e-5
into each; the norm before the softmax takes the statistics of 256 images at a time as the code
("bunch"), `norm_images` sets how many. The code sums over processes and undoes it for its log;
here the loss is the one of the whole batch. In the self-labelling phase the code looks for
confident images on each process; here among those of all, so that their number plays no part.
Its learning rate and harder crops are the recipe's `[[phases]]`. The code's variant for vision
transformers (a moving-average teacher, GELU in the head) is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
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
from transferbench.methods.parts.cluster_labels import label_balance
from transferbench.methods.parts.collectives import gather, sum_over_processes, world_size
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.multicrop import forward_by_resolution
from transferbench.methods.parts.plain_norm import norm_statistics, normalize
from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.requirements import require_batch
from transferbench.optim.schedules import half_cosine

LARGE_CROPS = 2
"""The first views are the large crops: each is compared with every other view."""

NORM_MOMENTUM = 0.1
"""Share of a step in the running statistics, as torch's batch norm."""


class TWISTSettings(MethodSettings):
    """Settings of `twist`."""

    head_hidden: int = Field(default=4096, ge=1)
    """Width of the head's two hidden layers."""
    classes: int = Field(default=4096, ge=2)
    """Number of classes (two views: 32768; unsupervised classification: 1000)."""
    consistency_weight: float = Field(default=1.0, ge=0.0)
    """Of the divergence between the views' class distributions."""
    sharpness_weight: float = Field(default=1.0, ge=0.0)
    """Of an image's entropy: the code's 1 + lam1 (vision transformers: 0.4)."""
    diversity_weight: float = Field(default=1.0, ge=0.0)
    """Of the entropy of the batch's mean distribution, which is subtracted: the code's lam2."""
    epsilon: float = Field(default=0.0, ge=0.0)
    """Added inside every logarithm (the code: 1e-5)."""
    last_norm: bool = True
    """Normalise the logits over the batch, without scale and shift, before the softmax."""
    norm_images: int = Field(default=256, ge=2)
    """Images that share the last norm's statistics; the whole batch if it is smaller."""
    norm_epsilon: float = Field(default=1e-5, gt=0.0)
    """Added to the last norm's variances."""
    self_label_from_epoch: int | None = Field(default=None, ge=0)
    """From this epoch on, counted from 0, train on the network's own confident labels (published:
    800 of 850); default: never."""
    self_label_quantiles: tuple[float, float] = (0.5, 0.6)
    """Share of the images that is confident enough, at the phase's start and end (a cosine)."""


class TWIST(Method):
    """Twin class distributions: consistent, sharp, diverse (arXiv 2110.07402)."""

    Settings = TWISTSettings
    global_batch_norm = True
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, settings: TWISTSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_batch("twist", context, 2)
        _require_twins(settings, context)
        hidden = settings.head_hidden
        self.head = mlp([self.num_features, hidden, hidden, settings.classes])
        # Of the last norm; only a classifier that sees single images needs them.
        self.register_buffer("running_mean", torch.zeros(settings.classes))
        self.register_buffer("running_var", torch.ones(settings.classes))

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return "logits" (B, V, classes), not normalised yet.

        One backbone pass a resolution; the head's batch norm mixes all crops.
        """
        features = forward_by_resolution(self.backbone, views)
        logits = self.head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return {"logits": logits.transpose(0, 1), "features": features[0].detach()}

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean over pairs of views, or in the later phase what the own labels cost."""
        log_p = self.log_probabilities(embeddings["logits"])
        largest = log_p.detach().argmax(-1).flatten()
        self.log("usage_entropy", label_balance(largest[None], [log_p.shape[-1]])[0])
        if self.self_labels(batch):
            return self._self_label_loss(log_p, batch)
        options = self.settings
        terms = twin_terms(log_p, options.epsilon)
        self.log("consistency", terms.consistency)
        self.log("sharpness", terms.sharpness)
        self.log("diversity_entropy", terms.diversity)
        total: Tensor = (
            options.consistency_weight * terms.consistency
            + options.sharpness_weight * terms.sharpness
            - options.diversity_weight * terms.diversity
        )
        return total

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log P of the classes for logits (B, V, C), normalised over the batch."""
        if self.settings.last_norm:
            mean, variance = norm_statistics(logits, self.settings.norm_images)
            logits = normalize(logits, mean, variance, self.settings.norm_epsilon)
        return log_softmax(logits)

    def self_labels(self, batch: BatchInfo) -> bool:
        """Tell whether the self-labelling phase has begun."""
        start: int | None = self.settings.self_label_from_epoch
        return start is not None and batch.epoch >= start

    def quantile(self, batch: BatchInfo) -> float:
        """Return the share of images that this step takes for confident."""
        start, stop = self.settings.self_label_quantiles
        first = self.settings.self_label_from_epoch * batch.steps_per_epoch
        progress = (batch.step - first) / max(batch.total_steps - first, 1)
        return float(stop + (start - stop) * half_cosine(progress))

    def _self_label_loss(self, log_p: Tensor, batch: BatchInfo) -> Tensor:
        """Cross-entropy of the less sure large crop, and the small ones, with the sure crop."""
        sure = confident_labels(log_p, self.quantile(batch))
        strong = log_p.gather(1, (1 - sure.anchors)[:, None, None].expand(-1, 1, log_p.shape[2]))
        predicting = torch.cat([strong, log_p[:, LARGE_CROPS:]], dim=1)
        targets = sure.targets[:, None, None].expand(-1, predicting.shape[1], 1)
        costs = -predicting.gather(2, targets).squeeze(2).mean(1)
        kept = sum_over_processes(sure.kept.sum())
        self.log("confident", kept / (len(log_p) * world_size()))
        self.log("confidence_threshold", sure.threshold)
        return (costs * sure.kept).sum() * world_size() / kept.clamp(min=1)

    @torch.no_grad()
    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Move the last norm's running statistics, the mean over groups of images."""
        logits = embeddings["logits"]
        mean, variance = norm_statistics(logits, self.settings.norm_images)
        count = min(self.settings.norm_images, len(logits) * world_size()) * logits.shape[1]
        variance = variance * count / (count - 1)
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            overall = sum_over_processes(now.mean(0)) / world_size()
            running.lerp_(overall.to(running.dtype), NORM_MOMENTUM)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Return class probabilities (B, C) of images (B, 3, S, S), each for itself.

        To be called in evaluation mode: the running statistics take the batch's place.
        """
        logits = self.head(self.backbone(images))
        if self.settings.last_norm:
            mean, variance = self.running_mean[None], self.running_var[None]
            logits = normalize(logits[:, None], mean, variance, self.settings.norm_epsilon)[:, 0]
        return log_softmax(logits).exp()


def crop_pairs(views: int) -> list[tuple[int, int]]:
    """Return which views are compared: 2 V - 3 pairs, none of two small crops."""
    return [(i, j) for i in range(LARGE_CROPS) for j in range(i + 1, views)]


class Terms(NamedTuple):
    """The loss's three terms, scalars in nats; the entropy counts as a gain."""

    consistency: Tensor
    sharpness: Tensor
    diversity: Tensor


def twin_terms(log_p: Tensor, epsilon: float = 0.0) -> Terms:
    """Return the terms of L = (L(P_i||P_j) + L(P_j||P_i)) / 2, averaged over the pairs of views.

    L(P||Q) = mean KL(P||Q) + mean H(P) - H(mean P) (arXiv 2110.07402 eq. 1 and 2).

    Parameters
    ----------
    log_p : Tensor (B, V, C)
        Log-probabilities of this process's images.
    epsilon : float
        Added inside the logarithms.
    """
    cross, diversity = class_entropies(log_p, epsilon)
    i, j = torch.tensor(crop_pairs(log_p.shape[1]), device=log_p.device).T
    own = cross.diagonal()
    sharpness = ((own[i] + own[j]) / 2).mean()
    # KL(P||Q) = CE(P, Q) - H(P)
    consistency = ((cross[i, j] + cross[j, i]) / 2).mean() - sharpness
    return Terms(consistency, sharpness, ((diversity[i] + diversity[j]) / 2).mean())


@at_least_float32
def class_entropies(log_p: Tensor, epsilon: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return what every pair of views costs, and how evenly each uses the classes.

    Parameters
    ----------
    log_p : Tensor (B, V, C)
    epsilon : float

    Returns
    -------
    cross : Tensor (V, V)
        Mean over this process's images of CE(P_v, P_w) = -sum P_v log P_w; on the diagonal H(P_v).
    diversity : Tensor (V,)
        H of the mean P_v over the images of all processes.
    """
    p = log_p.exp()
    logarithms = (p + epsilon).log() if epsilon else log_p
    cross = -torch.einsum("bvc,bwc->vw", p, logarithms) / len(p)
    mean = sum_over_processes(p.mean(0)) / world_size()
    # A class that no image has at all: 0 log 0 = 0, with a gradient.
    tiny = torch.finfo(mean.dtype).tiny
    return cross, -(mean * (mean + epsilon).clamp(min=tiny).log()).sum(-1)


@at_least_float32
def log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities over the last axis, (..., C)."""
    return logits.log_softmax(-1)


class Confident(NamedTuple):
    """Labels that the network gives itself: (B,) each but the threshold, a scalar."""

    threshold: Tensor
    kept: Tensor
    anchors: Tensor
    targets: Tensor


@torch.no_grad()
def confident_labels(log_p: Tensor, quantile: float) -> Confident:
    """Take each image's class from the large crop that is surer of it (the weak augmentation).

    Kept are images whose largest probability is strictly above that of number int(quantile * N),
    in descending order, of all N images on all processes (bytedance/TWIST: engine.py).

    Parameters
    ----------
    log_p : Tensor (B, V, C)
        The anchor is large crop 0 only where it is strictly surer.
    quantile : float
        Share of the images that are kept.
    """
    top, classes = log_p[:, :LARGE_CROPS].max(-1)
    top = top.exp()
    anchors = torch.where(top[:, 0] > top[:, 1], 0, 1)
    surest = top.max(1).values
    ranked = gather(surest).sort(descending=True).values
    threshold = ranked[min(int(quantile * len(ranked)), len(ranked) - 1)]
    targets = classes.gather(1, anchors[:, None]).squeeze(1)
    return Confident(threshold, surest > threshold, anchors, targets)


def _require_twins(settings: TWISTSettings, context: Context) -> None:
    given, batch = len(context.view_sizes), context.batch_size
    if given < LARGE_CROPS:
        raise UserError(
            f"views: twist compares views of an image, so it needs at least {LARGE_CROPS}, but the "
            f"recipe's [[views]] give {given} (their counts added)"
        )
    size, local = min(settings.norm_images, batch), batch // context.world_size
    if batch % size or (local % size and size % local):
        raise UserError(
            f"settings.norm_images: {settings.norm_images} does not cut a batch of {batch} images "
            f"({local} on each process) into equal groups; take a divisor, or {batch} for all"
        )
    switch = settings.self_label_from_epoch
    if switch is not None and switch >= context.epochs:
        raise UserError(
            f"settings.self_label_from_epoch: {switch} must be below the number of epochs, "
            f"{context.epochs}"
        )
    if not all(0 <= quantile <= 1 for quantile in settings.self_label_quantiles):
        raise UserError(
            f"settings.self_label_quantiles: {list(settings.self_label_quantiles)} are shares, "
            "0 to 1"
        )
