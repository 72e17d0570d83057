"""Features of the real image sets beside the checkout, and drawn ones of the same spectrum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transferbench.backbones.reference import parse_reference
from transferbench.data.dataset import Images, StoredImage
from transferbench.data.sources import find_source
from transferbench.errors import UserError
from transferbench.protocols.features import extract
from transferbench.storage import digest

Features = NDArray[Any]
SHARED = Path(__file__).parents[3] / "shared"
NETWORK = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class First:
    """The first `count` of some images."""

    images: Images
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[StoredImage]:
        return islice(iter(self.images), self.count)


def real_features(name: str, count: int, side: int = 128) -> tuple[Features, Features]:
    """Return float32 features (N, 1280) and labels (N,) of a set's first training images.

    EfficientNet-Lite0's at `side` pixels; kept in the cache, so that only the first call is long.
    """
    weights = SHARED / "backbones" / f"{NETWORK}.safetensors"
    if not weights.is_file():
        raise UserError(f"the real image sets and {weights.name} are not in {SHARED}")
    split = find_source(name, data_root=SHARED / "data").load().splits["train"]
    count = min(count, len(split))
    some = replace(
        split,
        labels=split.labels[:count],
        images=First(split.images, count),
        fingerprint=digest([split.fingerprint, count]),
    )
    backbone = parse_reference(f"file:{weights}@{NETWORK}@{side}", seed=0).load("cpu")
    return np.array(extract(backbone, some)), some.labels


def drawn_features(
    spectrum: NDArray[np.float64], n: int, d: int, classes: int, *, seed: int = 0
) -> tuple[Features, Features]:
    """Draw float32 features (N, D) whose covariance has a given spectrum, and labels (N,).

    Parameters
    ----------
    spectrum : array (E,)
        Eigenvalues of a covariance, falling; D of them are read off by interpolating their logs.
    n, d, classes : int
    seed : int

    Returns
    -------
    features, labels
        A fifth of each direction's variance is between classes, so that they overlap.
    """
    draw = np.random.default_rng(seed)
    logs = np.log(np.maximum(np.sort(spectrum)[::-1], spectrum.max() * 1e-12))
    place = np.linspace(0, 1, d)
    scale = np.sqrt(np.exp(np.interp(place, np.linspace(0, 1, len(logs)), logs)))
    rotation = np.linalg.qr(draw.standard_normal((d, d)))[0]
    labels = draw.integers(0, classes, n)
    means = draw.standard_normal((classes, d)) * np.sqrt(0.2)
    x = np.empty((n, d), np.float32)
    for start in range(0, n, 4096):
        rows = slice(start, start + 4096)
        noise = draw.standard_normal((len(labels[rows]), d)) * np.sqrt(0.8)
        x[rows] = ((means[labels[rows]] + noise) * scale) @ rotation.T
    return x, labels


def spectrum_of(x: Features) -> NDArray[np.float64]:
    """Return the eigenvalues (D,) of the features' covariance, falling."""
    return np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))[::-1]
