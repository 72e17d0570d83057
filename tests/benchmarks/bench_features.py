"""Feature extraction against the bare forward pass of the same network on the same images."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from transferbench.backbones.backbone import Backbone
from transferbench.backbones.reference import parse_reference
from transferbench.protocols.features import batch_size, extract, features_path

REPEATS = 5
CASES = [("resnet10t", 32, 8192), ("resnet18", 64, 2048), ("tf_efficientnet_lite0", 128, 512)]


@dataclass
class PixelSplit:
    """A split of noise, memory-mapped as the real ones are."""

    path: Path
    name: str = "train"
    fingerprint: str = "noise"

    def __len__(self) -> int:
        return len(self.pixels())

    def pixels(self, size: int | None = None, **_: Any) -> np.ndarray[Any, Any]:
        """Return the images (N, S, S, 3)."""
        return np.load(self.path, mmap_mode="r")


def bare(backbone: Backbone, images: np.ndarray[Any, Any]) -> float:
    """Return the seconds of the forward passes alone, on ready batches of the same size."""
    size = batch_size(backbone.input_size)
    module = backbone.module.to(memory_format=torch.channels_last)
    batches = [
        backbone.normalize(torch.from_numpy(np.array(images[i : i + size])))
        for i in range(0, len(images), size)
    ]
    with torch.inference_mode():
        module(batches[0])
        start = time.perf_counter()
        for batch in batches:
            module(batch)
        return time.perf_counter() - start


def whole(backbone: Backbone, split: PixelSplit) -> float:
    """Return the seconds of an extraction, the file in the cache included."""
    features_path(backbone, split).unlink(missing_ok=True)  # type: ignore[arg-type]
    start = time.perf_counter()
    extract(backbone, split)  # type: ignore[arg-type]
    return time.perf_counter() - start


def main() -> None:
    """Print a table; the target is 85 % of the bare forward. Both sides take turns."""
    table = Table("network", "side", "batch", "bare images/s", "extraction images/s", "share")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"TRANSFERBENCH_CACHE": folder}),
    ):
        for name, side, n in CASES:
            backbone = parse_reference(f"random:{name}@{side}", seed=0).load("cpu")
            noise = np.random.RandomState(0).randint(0, 256, (n, side, side, 3))
            path = Path(folder) / f"{name}.npy"
            np.save(path, noise.astype(np.uint8))
            split = PixelSplit(path)
            pairs = [
                (bare(backbone, split.pixels()), whole(backbone, split)) for _ in range(REPEATS)
            ]
            slow = [n / min(pair[i] for pair in pairs) for i in (0, 1)]
            share = statistics.median(a / b for a, b in pairs)
            table.add_row(
                name,
                str(side),
                str(batch_size(side)),
                f"{slow[0]:,.0f}",
                f"{slow[1]:,.0f}",
                f"{share:.0%}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
