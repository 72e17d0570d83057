"""A memory bank: one stored feature for every image of the pretraining set.

Sources: HobbitLong/PyContrast: pycontrast/memory/mem_bank.py; zhirongw/lemniscate.pytorch:
lib/NCEAverage.py, lib/NCECriterion.py; facebookresearch/vissl: vissl/losses/nce_loss.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferbench.methods.parts.collectives import gather, own_rows, world_size
from transferbench.methods.parts.precision import at_least_float32


class MemoryBank(nn.Module):
    """Rows (n, D) of unit length, row i for image i, equal on all processes.

    Parameters
    ----------
    num_images, width : int
        n and D.
    momentum : float
        Share of a stored row that an update keeps.
    """

    rows: Tensor

    def __init__(self, num_images: int, width: int, *, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("rows", F.normalize(torch.randn(num_images, width), dim=1))

    def candidates(self, indices: Tensor, negatives: int, generator: torch.Generator) -> Tensor:
        """Choose the rows that each image is compared with, (B, 1 + negatives) int64.

        Column 0 is the image's own; the others are drawn uniformly with replacement from all n,
        so an image's own row may be among them. Every process draws for the images of all and
        keeps its part: the numbers are those of one process with the whole batch.

        Parameters
        ----------
        indices : Tensor (B,) int64
            This process's images.
        negatives : int
        generator : torch.Generator
            On the CPU; gives a seed for the device's own numbers, of which there are many.
        """
        seed = int(torch.randint(2**62, (), generator=generator))
        chance = torch.Generator(indices.device).manual_seed(seed)
        drawn = torch.randint(
            len(self.rows),
            (len(indices) * world_size(), negatives),
            generator=chance,
            device=indices.device,
        )
        return torch.cat([indices[:, None], own_rows(drawn)], dim=1)

    def scores(self, features: Tensor, candidates: Tensor, temperature: float) -> Tensor:
        """Return the scores (B, C) of unit features (B, D) with rows `candidates` (B, C)."""
        return bank_scores(features, self.rows, temperature).gather(1, candidates)

    @torch.no_grad()
    def update(self, features: Tensor, indices: Tensor) -> None:
        """Mix all processes' features (B, D) into the rows of their images, and normalise.

        Rows `indices` (B,) become unit(momentum * old + (1 - momentum) * feature); a mix that
        cancels stays zero. Of an image that comes twice the last feature counts.
        """
        features, indices = gather(features.to(self.rows.dtype)), gather(indices)
        mixed = self.rows[indices].mul_(self.momentum).add_(features, alpha=1 - self.momentum)
        position = torch.arange(len(indices), device=indices.device)
        last = torch.where(indices[:, None] == indices, position, -1).amax(1)
        self.rows[indices] = F.normalize(mixed, dim=1)[last]


class NoiseContrast(nn.Module):
    """The noise-contrastive loss, its constant Z taken from the first batch and then frozen.

    Parameters
    ----------
    num_images : int
        n, among which negatives are drawn uniformly.
    epsilon : float
        See `noise_contrastive_terms`.
    """

    log_z: Tensor
    is_set: Tensor

    def __init__(self, num_images: int, *, epsilon: float) -> None:
        super().__init__()
        self.num_images, self.epsilon = num_images, epsilon
        self.register_buffer("log_z", torch.zeros(()))
        self.register_buffer("is_set", torch.tensor(False))
        self.staged: Tensor | None = None

    def estimate(self, scores: Tensor) -> Tensor:
        """Return ln Z, (): the frozen one, or of these scores (B, 1 + K), to be frozen."""
        log_z = torch.where(self.is_set, self.log_z, log_normalizer(scores, self.num_images))
        self.staged = log_z
        return log_z

    def forward(self, scores: Tensor, log_z: Tensor) -> Tensor:
        """Return the loss of scores (B, 1 + K): summed over negatives, mean over images."""
        noise = (scores.shape[1] - 1) / self.num_images
        terms = noise_contrastive_terms(scores, log_z, noise=noise, epsilon=self.epsilon)
        return (terms[0] + terms[1]).mean()

    def freeze(self) -> None:
        """Keep what the last loss took as Z, if it took any."""
        if self.staged is not None:
            self.log_z.copy_(self.staged)
            self.is_set.fill_(True)


@at_least_float32
def bank_scores(features: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Return the scores (B, n) of unit features (B, D) with all rows (n, D).

    One product with the whole bank costs less than reading C rows of D numbers for each image
    as soon as n < C * D.
    """
    # Divided before the product, so that only one matrix of (B, n) exists.
    return (features / temperature) @ rows.T


@at_least_float32
def softmax_loss(scores: Tensor, positives: Tensor | None = None) -> Tensor:
    """Return the mean over images of the cross-entropy of scores (B, C).

    The positive is in the columns `positives` (B,), by default in column 0.
    """
    if positives is None:
        positives = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    return F.cross_entropy(scores, positives)


@at_least_float32
def log_normalizer(scores: Tensor, num_images: int) -> Tensor:
    """Return ln Z, a constant (): Z is n times the mean of exp(score) over (B, C).

    The mean goes over all processes and includes the positives' column.
    """
    scores = scores.detach()
    log_mean = scores.flatten().logsumexp(0) - math.log(scores.numel())
    if world_size() > 1:
        shares = gather(log_mean[None])
        log_mean = shares.logsumexp(0) - math.log(len(shares))
    return math.log(num_images) + log_mean


@at_least_float32
def noise_contrastive_terms(
    scores: Tensor, log_z: Tensor, *, noise: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Tell each image's row from noise (arXiv 1805.01978 sec. 3.2), in logarithms.

    Parameters
    ----------
    scores : Tensor (B, 1 + K)
        The positive's in column 0.
    log_z : Tensor ()
        Logarithm of the constant by which exponentials become probabilities P.
    noise : float
        K / n, the number of negatives times the probability of each.
    epsilon : float
        Added to the noise in the denominators, as the codes do: c = K / n + epsilon.

    Returns
    -------
    positive : Tensor (B,)
        -ln(P / (P + c)).
    negative : Tensor (B,)
        The sum over negatives of -ln((K / n) / (P + c)).
    """
    log_p = scores - log_z
    total = torch.logaddexp(log_p, log_p.new_full((), math.log(noise + epsilon)))
    return total[:, 0] - log_p[:, 0], (total[:, 1:] - math.log(noise)).sum(1)
