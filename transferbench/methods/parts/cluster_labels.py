"""Training on labels that a clustering of the whole data set gave, one labeling a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.parts.collectives import sum_over_processes, world_size
from transferbench.methods.parts.precision import at_least_float32

MISSING = -100
"""The label of an image that no clustering has seen; what `cross_entropy` ignores by default."""

BALANCE = ("usage_entropy", "smallest_class", "largest_class")
"""Names of what `label_balance` returns, for the log."""


@at_least_float32
def cluster_logits(z: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """Return logits (..., K): dot products of z (..., D) with prototypes (K, D) / temperature."""
    return z @ prototypes.T / temperature


@at_least_float32
def labeled_cross_entropy(logits: Tensor, labels: Tensor, soft: Tensor | None = None) -> Tensor:
    """Return this process's share of the mean cross-entropy of all views of labeled images.

    The mean goes over the labeled images of all processes; it is 0 where there is none.

    Parameters
    ----------
    logits : Tensor (B, V, K)
        Every view is trained on its image's label.
    labels : Tensor (B,) int64
        `MISSING` leaves an image out.
    soft : Tensor (B, K), optional
        Class probabilities in place of the labels.
    """
    known = labels != MISSING
    targets = labels if soft is None else soft * known[:, None]
    costs = F.cross_entropy(
        logits.flatten(0, 1), targets.repeat_interleave(logits.shape[1], 0), reduction="sum"
    )
    count = sum_over_processes(known.sum()) * logits.shape[1]
    return costs * world_size() / count.clamp(min=1)


def label_balance(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Measure how evenly labels (H, N) of H labelings use their classes; `MISSING` is left out.

    Returns
    -------
    Tensor (3,)
        Entropy of the class counts as a share of its largest value, 0 to 1, of the labeling where
        it is lowest; the smallest and the largest class of all.
    """
    shares, smallest, largest = [], [], []
    for own, number in zip(labels, classes, strict=True):
        counts = torch.bincount(own[own != MISSING], minlength=number).float()
        most = counts.sum().clamp(2, number).log()
        shares.append(torch.special.entr(counts / counts.sum().clamp(min=1)).sum() / most)
        smallest.append(counts.min())
        largest.append(counts.max())
    worst = torch.stack(shares).min()
    return torch.stack([worst, torch.stack(smallest).min(), torch.stack(largest).max()])


@torch.no_grad()
def label_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of labeled views whose largest logit (B, V, K) is at the label (B,)."""
    known = (labels != MISSING)[:, None]
    right = (logits.argmax(-1) == labels[:, None]) & known
    return right.sum() / (known.sum() * logits.shape[1]).clamp(min=1)


def require_clusters(method: str, context: Context, classes: Sequence[int]) -> None:
    """Refuse more clusters than a bank of the last epoch has rows."""
    rows = context.steps_per_epoch * context.batch_size
    if max(classes) > rows:
        raise UserError(
            f"settings.prototypes: {method} cannot find {max(classes)} clusters in {rows} images "
            f"({context.steps_per_epoch} whole batches of {context.batch_size})"
        )


def require_bank_views(method: str, context: Context, views: Sequence[int]) -> None:
    """Refuse bank views that are not different views of the recipe."""
    given = len(context.view_sizes)
    if len(set(views)) < len(views) or not all(0 <= view < given for view in views):
        raise UserError(
            f"settings.bank_views: {list(views)} must be different views out of 0 to {given - 1}, "
            f"for {method} is given {given} (the counts of [[views]] added)"
        )
