"""Prototypes of PCL (arXiv 2005.04966): clusters of all images, each with a temperature.

Source: salesforce/PCL: main_pcl.py, pcl/builder.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.methods.method import Context, EmbedAll
from transferbench.methods.parts.collectives import from_first_process, rank, sum_over_processes
from transferbench.methods.parts.kmeans import KMeansSearch, kmeans, nearest
from transferbench.methods.parts.precision import at_least_float32

NONE = -1
"""Stands for a negative where fewer clusters remain than are wanted."""


class Clustering(nn.Module):
    """One clustering of all images, equal on all processes.

    Parameters
    ----------
    num_images, clusters, width : int
        n, K and D.
    temperature : float
        Mean of the concentrations.

    Attributes
    ----------
    assignments : Tensor (n,) int64
        Each image's cluster.
    sizes : Tensor (K,) int64
        Images in each cluster.
    prototypes : Tensor (K, D)
        Centroids of unit length.
    concentrations : Tensor (K,)
        Temperature of each cluster: see `concentration`.
    """

    assignments: Tensor
    sizes: Tensor
    prototypes: Tensor
    concentrations: Tensor

    def __init__(self, num_images: int, clusters: int, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("assignments", torch.zeros(num_images, dtype=torch.long))
        self.register_buffer("sizes", torch.zeros(clusters, dtype=torch.long))
        self.register_buffer("prototypes", torch.zeros(clusters, width))
        self.register_buffer("concentrations", torch.full((clusters,), temperature))

    @torch.no_grad()
    def fit(
        self, features: Tensor, alpha: float, search: KMeansSearch, generator: torch.Generator
    ) -> None:
        """Cluster the features (n, D) of all images on the first process, and hand it round.

        `alpha` is `concentration`'s; the generator is on the CPU.
        """
        # Drawn on every process, so that their generators stay together.
        seed = int(torch.randint(2**62, (), generator=generator))
        if rank() == 0:
            chance = torch.Generator().manual_seed(seed)
            centroids = kmeans(features, len(self.prototypes), search, chance)
            assignments, prototypes, distances = describe(features, centroids)
            self.assignments.copy_(assignments)
            self.sizes.copy_(torch.bincount(assignments, minlength=len(centroids)))
            self.prototypes.copy_(prototypes)
            phi = concentration(
                distances, assignments, len(centroids), alpha=alpha, temperature=self.temperature
            )
            self.concentrations.copy_(phi)
        for buffer in self.buffers():
            buffer.copy_(from_first_process(buffer))

    def negatives(self, positives: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw clusters that are no positive of this process, without replacement.

        Returns `count` of them, or all there are with `NONE` in the other places, (R,) int64 with
        R = min(count, K). Empty clusters are never drawn.

        Parameters
        ----------
        positives : Tensor (B,) int64
        count : int
        generator : torch.Generator
            On the CPU; gives a seed for the device's own numbers, other ones on each process.
        """
        seed = int(torch.randint(2**62, (), generator=generator)) + rank()
        chance = torch.Generator(positives.device).manual_seed(seed)
        order = torch.rand(len(self.sizes), generator=chance, device=positives.device)
        order = order.masked_fill(self.sizes == 0, 2.0).index_fill(0, positives, 2.0)
        first = order.topk(min(count, len(order)), largest=False)
        return torch.where(first.values < 2.0, first.indices, NONE)

    def usage_entropy(self) -> Tensor:
        """Return the entropy of the clusters' sizes as a share of its largest value, ()."""
        shares = self.sizes / self.sizes.sum().clamp(min=1)
        most = math.log(min(len(self.sizes), len(self.assignments)))
        entropy: Tensor = torch.special.entr(shares).sum()
        return entropy / most


class Prototypes(nn.Module):
    """Several clusterings of all images, with different numbers of clusters.

    Parameters
    ----------
    num_images, width : int
        n and D.
    clusters : sequence of int
        K of each clustering.
    temperature, alpha : float
        See `concentration`.
    negatives : int
        See `Clustering.negatives`.
    search : KMeansSearch
    """

    def __init__(
        self,
        num_images: int,
        width: int,
        clusters: Sequence[int],
        *,
        temperature: float,
        alpha: float,
        negatives: int,
        search: KMeansSearch,
    ) -> None:
        super().__init__()
        self.num_images, self.negatives = num_images, negatives
        self.alpha, self.search = alpha, search
        self.clusterings = nn.ModuleList(
            Clustering(num_images, count, width, temperature) for count in clusters
        )

    def each(self) -> list[Clustering]:
        """Return the clusterings."""
        return [cast(Clustering, clustering) for clustering in self.clusterings]

    def fit(
        self,
        embed_all: EmbedAll,
        encoder: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> None:
        """Cluster the unit features that an encoder gives one plain view of every image.

        The encoder runs in evaluation mode. What the processes have seen is added up; an image
        that two have seen, as a sampler pads its last batch, still counts once.
        """
        indices, rows = embed_all(lambda views: encoder(views[0]))
        features = rows.new_zeros(self.num_images, rows.shape[1])
        features[indices] = rows
        features = halve_duplicates(sum_over_processes(features))
        for clustering in self.each():
            clustering.fit(features, self.alpha, self.search, generator)

    def contrast(
        self, q: Tensor, indices: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the means over clusterings of loss () and hits (): see `prototype_contrast`.

        Queries (B, D) are unit rows, of the images `indices` (B,).
        """
        losses, hits = [], []
        for clustering in self.each():
            positives = clustering.assignments[indices]
            negatives = clustering.negatives(positives, self.negatives, generator)
            loss, hit = prototype_contrast(
                q, clustering.prototypes, clustering.concentrations, positives, negatives
            )
            losses.append(loss)
            hits.append(hit)
        return torch.stack(losses).mean(), torch.stack(hits).mean()

    def usage_entropy(self) -> Tensor:
        """Return how evenly images are spread over clusters, 0 to 1, in the worst clustering."""
        return torch.stack([clustering.usage_entropy() for clustering in self.each()]).min()


def halve_duplicates(features: Tensor) -> Tensor:
    """Bring rows (n, D) that two processes have added up, twice a unit row, back to one."""
    twice = features.norm(dim=1, keepdim=True) > 1.5
    return torch.where(twice, features / 2, features)


def describe(features: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Assign features (n, D) to centroids (K, D).

    Returns
    -------
    assignments : Tensor (n,) int64
    prototypes : Tensor (K, D)
        The centroids at unit length.
    distances : Tensor (n,)
        Squared, to the centroids as they are.
    """
    assignments, distances = nearest(features, centroids)
    return assignments, F.normalize(centroids, dim=1), distances


@at_least_float32
def concentration(
    distances: Tensor, assignments: Tensor, clusters: int, *, alpha: float, temperature: float
) -> Tensor:
    """Estimate each cluster's temperature phi (K,) from how close its members are.

    The mean distance of a cluster's members over ln(members + alpha); clusters of less than two
    members get the largest; all are clipped to the 10th and 90th percentile and scaled to the
    mean `temperature`. Where most clusters are points and phi would be 0, it is a thousandth of
    the temperature, or all of it if all clusters are.

    Parameters
    ----------
    distances : Tensor (n,)
        Squared, of each image to its centroid.
    assignments : Tensor (n,) int64
    clusters : int
        K.
    alpha, temperature : float
    """
    sizes = torch.bincount(assignments, minlength=clusters)
    sums = distances.new_zeros(clusters).index_add_(0, assignments, distances.sqrt())
    phi = sums / sizes.clamp(min=1) / (sizes + alpha).log()
    several = sizes > 1
    phi = torch.where(several, phi, phi.masked_fill(~several, 0).max())
    low, high = phi.quantile(phi.new_tensor([0.1, 0.9]))
    phi = phi.clamp(low, high)
    mean = phi.mean()
    phi = torch.where(mean > 0, temperature * phi / mean, temperature)
    return phi.clamp(min=temperature / 1000)


@at_least_float32
def prototype_contrast(
    q: Tensor,
    prototypes: Tensor,
    concentrations: Tensor,
    positives: Tensor,
    negatives: Tensor,
) -> tuple[Tensor, Tensor]:
    """Let each query find its cluster among those of the batch and the negatives.

    Parameters
    ----------
    q : Tensor (B, D)
        Unit rows.
    prototypes, concentrations : Tensor (K, D), (K,)
        Constants.
    positives : Tensor (B,) int64
        Each query's cluster. One that two queries share is also a competitor of both.
    negatives : Tensor (R,) int64
        Further clusters, or `NONE`.

    Returns
    -------
    loss : Tensor ()
        Mean cross-entropy.
    hits : Tensor ()
        Share of queries whose own cluster has the largest logit.
    """
    selected = torch.cat([positives, negatives])
    absent = selected == NONE
    selected = selected.clamp(min=0)
    logits = q @ prototypes[selected].T / concentrations[selected]
    logits = logits.masked_fill(absent, -torch.inf)
    hits = (selected[logits.detach().argmax(1)] == positives).float().mean()
    return F.cross_entropy(logits, torch.arange(len(q), device=q.device)), hits


def require_clusters(method: str, context: Context, clusters: Sequence[int]) -> None:
    """Refuse more clusters than there are images."""
    if max(clusters) > context.num_images:
        raise UserError(
            f"settings.clusters: {method} cannot make {max(clusters)} clusters of "
            f"{context.num_images} images"
        )
