"""The handwritten digits that come with scikit-learn, as small colour images.

1,797 grey images of 8 x 8 with values 0..16. A value v becomes the grey round(255 v / 16) in all
three channels, and every value a block of 4 x 4 pixels smoothed by Pillow's bicubic filter, which
makes 32 x 32. The set has no official split: the last fifth, 359 images from position 1438 on, is
the test split. scikit-learn's images come in the order in which the writers wrote them, so the
last fifth holds hands that the training images do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Literal

import numpy as np
import numpy.typing as npt

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

SIDE = 32
# Raised when the rules above change.
VERSION = 1


class DigitsSource:
    """scikit-learn's `load_digits`, split and enlarged."""

    name = "digits"
    kind: Literal["embedded"] = "embedded"

    @cached_property
    def card(self) -> Card:
        """The packaged card."""
        return packaged_card(self.name)

    def identity(self) -> str:
        """Return the SHA-256 of scikit-learn's version, the rules and the card."""
        return data_identity(self._recipe, self.card)

    def load(
        self, *, skip_corrupt: int = 0, progress: Progress = SILENT, wanted: Wanted | None = None
    ) -> Dataset:
        """Return the data set."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        cut = self.card.counts["train"]
        splits = {}
        for name, rows in (("train", slice(0, cut)), ("test", slice(cut, None))):
            images = DigitImages(digits.images[rows])
            labels = digits.target[rows].astype(np.int64)
            fingerprint = digest([self._recipe, name, len(labels)])
            splits[name] = Split(name, labels, images, fingerprint, native_size=SIDE)
        names = tuple(str(digit) for digit in range(10))
        return Dataset(self.name, self.card, self.identity(), splits, names)

    @property
    def _recipe(self) -> list[object]:
        return ["digits", VERSION, version("scikit-learn")]


@dataclass(frozen=True, eq=False)
class DigitImages:
    """Digits of (N, 8, 8) values in 0..16, enlarged while they are read."""

    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[StoredImage]:
        from PIL import Image

        from transferbench.data.images import ArrayImage

        for position, values in enumerate(self.values):
            grey = Image.fromarray(np.rint(values * (255 / 16)).astype(np.uint8))
            large = grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
            yield ArrayImage(f"digits, image {position}", np.asarray(large))


DIGITS = DigitsSource()
