"""Batched augmentation on one core: images a second, all of a recipe's views made."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from transferbench.augment.settings import Normalization, ViewSettings
from transferbench.augment.views import MultiView

REPEATS = 25
JITTER = {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
COLORFUL = {"flip": 0.5, "jitter": JITTER, "grayscale": 0.2}
LARGE: dict[str, Any] = {"count": 2, "size": 32, "crop": {}} | COLORFUL
SMALL: dict[str, Any] = {"count": 6, "size": 16, "crop": {"scale": [0.05, 0.2]}} | COLORFUL
TENSORFLOW = JITTER | {
    "brightness_mode": "add",
    "contrast_mode": "channel-mean",
    "saturation_mode": "hsv",
}

PIPELINES: dict[str, list[dict[str, Any]]] = {
    "SimCLR, 2 x 32": [LARGE],
    "SimCLR, 2 x 32, with blur": [LARGE | {"blur": {"p": 0.5}}],
    "SimCLR, TensorFlow's jitter": [LARGE | {"jitter": TENSORFLOW}],
    "SwAV, 2 x 32 + 6 x 16": [LARGE, SMALL],
    "supervised, padded cut and flip": [{"size": 32, "pad_crop": {}, "flip": 0.5}],
}


def rate(maker: MultiView, images: Tensor) -> tuple[float, float]:
    """Return images a second in the best and in the median of some repeats."""
    generator = torch.Generator().manual_seed(0)
    maker(images, generator)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        maker(images, generator)
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    return len(images) / seconds[0], len(images) / seconds[len(seconds) // 2]


def main() -> None:
    """Print a table of pipelines and batch sizes; the target is 10,000 for SimCLR at 512."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    table = Table("views", "batch", "best images/s", "median images/s")
    chance = torch.Generator().manual_seed(0)
    try:
        for name, views in PIPELINES.items():
            maker = MultiView(
                [ViewSettings.model_validate(view) for view in views], Normalization()
            )
            for batch in (128, 512):
                images = torch.randint(0, 256, (batch, 32, 32, 3), generator=chance).byte()
                best, median = rate(maker, images)
                table.add_row(name, str(batch), f"{best:,.0f}", f"{median:,.0f}")
    finally:
        torch.set_num_threads(threads)
    Console().print(table)


if __name__ == "__main__":
    main()
