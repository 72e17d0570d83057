"""The embedded sets: pictures drawn by the package, the same on every machine.

`drawn` is for pretraining; its labels (a shape and a texture together) are for methods that read
labels. `drawn-shapes` and `drawn-textures` are downstream tasks: the one asks for the shape
whatever the texture, the other for the texture whatever the shape. All three draw from streams of
their own, so that no picture is in two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from transferbench.data import canvas
from transferbench.data.dataset import (
    Card,
    Dataset,
    Split,
    StoredImage,
    Wanted,
    data_identity,
    packaged_card,
)
from transferbench.progress import SILENT, Progress
from transferbench.storage import digest

SEED = 20103377
BATCH = 64

Ask = Literal["shape", "texture", "both"]


class DrawnSource:
    """A set of drawn pictures.

    Parameters
    ----------
    name : str
        Of the set and its card; the card's counts say how many pictures are drawn.
    stream : int
        Separates its random numbers from those of the other sets.
    ask : {"shape", "texture", "both"}
        What the label says.
    """

    kind: Literal["embedded"] = "embedded"

    def __init__(self, name: str, *, stream: int, ask: Ask) -> None:
        self.name = name
        self.stream = stream
        self.ask: Ask = ask

    @cached_property
    def card(self) -> Card:
        """The packaged card."""
        return packaged_card(self.name)

    def identity(self) -> str:
        """Return the SHA-256 of generator version, parameters and card; draws nothing."""
        return data_identity([self._recipe, self.card.counts], self.card)

    def load(
        self, *, skip_corrupt: int = 0, progress: Progress = SILENT, wanted: Wanted | None = None
    ) -> Dataset:
        """Return the data set; pictures are drawn when their pixels are first asked for."""
        splits = {}
        for number, (name, count) in enumerate(self.card.counts.items()):
            pictures = DrawnImages(self.name, (SEED, self.stream, number), count)
            fingerprint = digest([self._recipe, number, count])
            labels = self._labels(pictures)
            splits[name] = Split(name, labels, pictures, fingerprint, native_size=canvas.SIDE)
        return Dataset(self.name, self.card, self.identity(), splits, self._classes)

    @property
    def _recipe(self) -> list[Any]:
        return ["drawn", canvas.VERSION, SEED, self.stream, self.ask]

    @property
    def _classes(self) -> tuple[str, ...]:
        shapes, textures = tuple(canvas.SHAPES), tuple(canvas.TEXTURES)
        if self.ask == "both":
            return tuple(f"{shape} of {texture}" for shape in shapes for texture in textures)
        return shapes if self.ask == "shape" else textures

    def _labels(self, pictures: DrawnImages) -> npt.NDArray[np.int64]:
        shapes, textures = pictures.kinds
        if self.ask == "both":
            return shapes * len(canvas.TEXTURES) + textures
        return shapes if self.ask == "shape" else textures


@dataclass(frozen=True)
class DrawnImages:
    """Pictures that are drawn while they are read.

    Attributes
    ----------
    seed : tuple of int
        Starts the stream of random numbers.
    count : int
        Number of pictures.
    """

    title: str
    seed: tuple[int, ...]
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def kinds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Shape and texture of every picture, int64 (N,) each; all pairs are equally frequent."""
        pairs = len(canvas.SHAPES) * len(canvas.TEXTURES)
        order = np.random.default_rng((*self.seed, 0)).permutation(self.count) % pairs
        return order // len(canvas.TEXTURES), order % len(canvas.TEXTURES)

    def __iter__(self) -> Iterator[StoredImage]:
        from transferbench.data.images import ArrayImage

        generator = np.random.default_rng((*self.seed, 1))
        shapes, textures = self.kinds
        for start in range(0, self.count, BATCH):
            rows = slice(start, start + BATCH)
            pictures = canvas.draw(shapes[rows], textures[rows], generator)
            for offset, picture in enumerate(pictures):
                yield ArrayImage(f"{self.title}, picture {start + offset}", picture)


DRAWN = DrawnSource("drawn", stream=0, ask="both")
SHAPES = DrawnSource("drawn-shapes", stream=1, ask="shape")
TEXTURES = DrawnSource("drawn-textures", stream=2, ask="texture")
