"""What the geometry of features tells without labels: rank, alignment, uniformity, spread.

RankMe (arXiv 2210.02885), alignment and uniformity (arXiv 2005.10242), and the standard deviation
of each dimension of unit-length features (arXiv 2011.10566, section 4.1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from transferbench.errors import UserError
from transferbench.progress import SILENT, Progress
from transferbench.protocols.clock import Clock
from transferbench.protocols.protocol import Outcome, Parameters

if TYPE_CHECKING:
    from torch import Tensor

    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Card, Dataset
    from transferbench.measures.metrics import Array, Floats
    from transferbench.protocols.features import View

GROUPS = 10
"""Parts of the images that the jackknife leaves out one by one."""

SMALLEST_CUT = 0.2
"""Least share of an image's area in a view: that of the methods with a random resized crop."""


class GeometryParameters(Parameters):
    """What may be chosen about the measures.

    Attributes
    ----------
    images : int
        At most so many test images are measured; the seed draws them. RankMe depends on their
        number as long as that is not many times the dimension.
    """

    images: int = Field(default=10_000, ge=GROUPS)

    def suit(self, card: Card) -> bool:
        """Return False where the card tells of too few test images for an error."""
        return card.counts.get("test", GROUPS) >= GROUPS


class Geometry:
    """Measure the features of test images; no label is read."""

    name: ClassVar[str] = "geometry"
    version: ClassVar[int] = 1
    Parameters: ClassVar[type[Parameters]] = GeometryParameters

    def applies_to(self, card: Card) -> bool:
        """Return True: labels play no part."""
        return True

    def run(
        self,
        backbone: Backbone,
        dataset: Dataset,
        parameters: GeometryParameters,
        *,
        seed: int,
        device: str,
        progress: Progress = SILENT,
    ) -> Outcome:
        """Measure; the value is RankMe, its error by the jackknife over tenths of the images.

        Alignment is that of an image as `linear` sees it with a random cut of it.
        """
        from transferbench.measures.geometry import alignment, rankme, uniformity
        from transferbench.measures.neighbors import unit_rows
        from transferbench.protocols.features import gather

        clock = Clock()
        features, _ = gather(backbone, dataset, ("test",), device=device, progress=progress)
        cuts, _ = gather(
            backbone, dataset, ("test",), view=cut_view(), device=device, progress=progress
        )
        if len(features) < GROUPS:
            raise UserError(
                f"'{dataset.name}' has {len(features)} test images, but the geometry of features "
                f"needs {GROUPS} or more"
            )
        chosen = np.random.RandomState(seed % 2**32).permutation(len(features))
        chosen = np.sort(chosen[: parameters.images])
        rows = np.asarray(features[chosen], np.float64)
        clock.lap("features")
        unit, other = unit_rows(rows), unit_rows(cuts[chosen])
        dimension = rows.shape[1]
        spread = unit.std(axis=0) * math.sqrt(dimension)
        value = rankme(rows)
        error = jackknife_error(rows, seed=seed)
        clock.lap("measures")
        return Outcome(
            metric="rankme",
            value=value,
            standard_error=error,
            n=len(rows),
            details={
                "dimension": dimension,
                "errors_over": "tenths of the test images, left out one by one",
                "rankme": value,
                "alignment": alignment(unit, other),
                "uniformity": uniformity(unit),
                "spread": float(spread.mean()),
                "spread_quartiles": [float(q) for q in np.percentile(spread, [0, 25, 50, 75, 100])],
            },
            cost=clock.seconds,
        )


def jackknife_error(rows: Array, *, seed: int) -> float:
    """Return the standard error of RankMe by leaving out each of `GROUPS` parts of rows (N, D).

    The singular values are those of the smaller of the two Gram matrices: rounding there moves
    only values that add nothing to the rank.
    """
    parts = np.array_split(np.random.RandomState(seed % 2**32).permutation(len(rows)), GROUPS)
    values = []
    if len(rows) > rows.shape[1]:
        grams = [rows[part].T @ rows[part] for part in parts]
        total: Floats = np.sum(grams, axis=0)
        values = [_rank_of(total - gram) for gram in grams]
    else:
        gram = rows @ rows.T
        for part in parts:
            rest = np.setdiff1d(np.arange(len(rows)), part)
            values.append(_rank_of(gram[np.ix_(rest, rest)]))
    spread = np.square(np.array(values) - np.mean(values)).sum()
    return float(np.sqrt((GROUPS - 1) / GROUPS * spread))


def _rank_of(gram: Array) -> float:
    """Return RankMe from a Gram matrix (M, M)."""
    from transferbench.measures.geometry import rankme

    singular = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0))
    return rankme(np.diag(singular))


def cut_view() -> View:
    """Return random resized crops with a flip, each image's own, the same at every call."""
    from transferbench.protocols.features import PLAIN, View

    def prepare(backbone: Backbone, images: Tensor, start: int) -> Tensor:
        import torch

        from transferbench.augment.settings import CropSettings, Normalization, ViewSettings
        from transferbench.augment.views import MultiView

        view = ViewSettings(
            size=backbone.input_size,
            crop=CropSettings(scale=(SMALLEST_CUT, 1.0), interpolation=backbone.interpolation),
            flip=0.5,
        )
        make = MultiView([view], Normalization(mean=backbone.mean, std=backbone.std))
        (cut,) = make(images, torch.Generator().manual_seed(start))
        return cut

    return View("cut-1", PLAIN.pixels, prepare)
