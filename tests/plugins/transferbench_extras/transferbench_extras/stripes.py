"""A data set that is made by code: stripes that lie or stand, in random colours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transferbench.data.dataset import (
    Card,
    Dataset,
    Split,
    StoredImage,
    Wanted,
    data_identity,
    make_card,
)
from transferbench.progress import SILENT, Progress
from transferbench.storage import digest

SIDE = 16
CLASSES = ("lying", "standing")
# Raised when the same card would give other pictures.
VERSION = 1


class StripesSource:
    """What `transferbench.data.sources.Source` asks for."""

    name = "stripes"
    kind: Literal["embedded"] = "embedded"
    card: Card = make_card(
        {
            "name": "stripes",
            "title": "Stripes that lie or stand",
            "metric": "top1",
            "classes": 2,
            "class_names": CLASSES,
            "licence": "Apache-2.0 (drawn by this package)",
            "counts": {"train": 80, "test": 40},
        },
        "stripes",
    )

    def identity(self) -> str:
        """Tell the set from any other without drawing it."""
        return data_identity(["stripes", VERSION], self.card)

    def load(
        self, *, skip_corrupt: int = 0, progress: Progress = SILENT, wanted: Wanted | None = None
    ) -> Dataset:
        """Return the set; a picture is drawn when its pixels are asked for."""
        splits = {}
        for seed, (name, count) in enumerate(self.card.counts.items()):
            labels = np.arange(count, dtype=np.int64) % 2
            fingerprint = digest(["stripes", VERSION, seed, count])
            splits[name] = Split(name, labels, Stripes(seed, count), fingerprint, native_size=SIDE)
        return Dataset(self.name, self.card, self.identity(), splits, CLASSES)


@dataclass(frozen=True)
class Stripes:
    """Pictures that are drawn while they are read."""

    seed: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[StoredImage]:
        from transferbench.data.images import ArrayImage

        random = np.random.default_rng(self.seed)
        for i in range(self.count):
            rows = random.integers(0, 256, (SIDE, 1, 3), dtype=np.uint8).repeat(SIDE, axis=1)
            picture = rows.transpose(1, 0, 2) if i % 2 else rows
            yield ArrayImage(f"stripes, picture {i}", np.ascontiguousarray(picture))


STRIPES = StripesSource()
