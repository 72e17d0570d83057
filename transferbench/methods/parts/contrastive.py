"""Contrastive losses as logits and the column of each row's positive; the loss is cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from transferbench.methods.parts.collectives import gather, rank
from transferbench.methods.parts.precision import at_least_float32


@at_least_float32
def nt_xent_logits(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compare both views of every image with all other views (arXiv 2002.05709 eq. 1).

    Parameters
    ----------
    first, second : Tensor (B, D)
        Projections of the two views, not normalised; this process's images.
    temperature : float
        Divides the cosine similarities.

    Returns
    -------
    logits : Tensor (2 B, 2 N)
        Row i < B is an anchor of the first view, row B + i of the second. Columns are the first,
        then the second views of the N images of all processes, gathered with gradient. A row's
        own column is -inf.
    positives : Tensor (2 B,) int64
        The column of the anchor's partner.
    """
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    all_first, all_second = gather(first), gather(second)
    logits = torch.cat([first, second]) @ torch.cat([all_first, all_second]).T / temperature
    images = torch.arange(len(first), device=first.device) + rank() * len(first)
    own = torch.cat([images, images + len(all_first)])
    positives = own.roll(len(first))
    return logits.scatter(1, own[:, None], -torch.inf), positives


@at_least_float32
def info_nce_logits(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """Compare each query with its positive and with all negatives (arXiv 1911.05722 eq. 1).

    Parameters
    ----------
    query, positive : Tensor (B, D)
        Unit rows; row i of `positive` belongs to row i of `query`.
    negatives : Tensor (K, D)
        Unit rows that every query is compared with.
    temperature : float
        Divides the cosine similarities.

    Returns
    -------
    Tensor (B, 1 + K)
        The positive's logit in column 0.
    """
    own = (query * positive).sum(1, keepdim=True)
    return torch.cat([own, query @ negatives.T], dim=1) / temperature


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss of each query, (B,); see `info_nce_logits`."""
    return first_column_loss(info_nce_logits(query, positive, negatives, temperature))


@at_least_float32
def first_column_loss(logits: Tensor) -> Tensor:
    """Return the cross-entropy (B,) of logits (B, C) whose positive is in column 0."""
    positives = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, positives, reduction="none")


@torch.no_grad()
def first_column_hits(logits: Tensor) -> Tensor:
    """Return the share () of rows (B, C) whose column 0 is larger than all others."""
    return (logits[:, 0] > logits[:, 1:].amax(1)).float().mean()
