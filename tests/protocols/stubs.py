"""A small data set in memory that counts how often each split is read."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from transferbench.backbones.backbone import Backbone
from transferbench.backbones.reference import wrap_module
from transferbench.data.dataset import Card, Dataset

SIZE = 8


class CountedSplit:
    """As `Split`, with pixels from memory; `log` collects "split.pixels" and "split.labels"."""

    def __init__(self, name: str, pixels: np.ndarray, labels: np.ndarray, log: list[str]) -> None:
        self.name, self._pixels, self._labels, self._log = name, pixels, labels, log
        self.skipped = 0
        self.native_size = SIZE
        self.fingerprint = f"{name}-{hash((pixels.tobytes(), labels.tobytes())):x}"

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def labels(self) -> np.ndarray:
        self._log.append(f"{self.name}.labels")
        return self._labels

    def pixels(self, size: int | None = None, *_: Any, **__: Any) -> np.ndarray:
        assert size == SIZE
        self._log.append(f"{self.name}.pixels")
        return self._pixels


class CountedSplits(Mapping[str, CountedSplit]):
    def __init__(self, splits: dict[str, CountedSplit], log: list[str]) -> None:
        self._splits, self._log = splits, log

    def __getitem__(self, name: str) -> CountedSplit:
        self._log.append(name)
        return self._splits[name]

    def __contains__(self, name: object) -> bool:
        return name in self._splits

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)


def make_dataset(
    log: list[str] | None = None,
    *,
    classes: int = 4,
    sizes: Mapping[str, int] | None = None,
    task: str = "multiclass",
    metric: str = "top1",
    noise: float = 20.0,
    shuffled: bool = False,
    seed: int = 0,
) -> Dataset:
    """Classes are colours with noise; `shuffled` labels have nothing to do with them."""
    log = [] if log is None else log
    sizes = sizes or {"train": 160, "val": 60, "test": 80}
    draw = np.random.RandomState(seed)
    colors = draw.uniform(40, 215, size=(classes, 3))
    splits = {}
    for name, n in sizes.items():
        if task == "multiclass":
            labels = draw.randint(0, classes, n)
            mean = colors[labels]
        else:
            labels = (draw.uniform(size=(n, classes)) < 0.4).astype(np.uint8)
            mean = 127 + (labels @ (colors - 127))
        pixels = mean[:, None, None, :] + noise * draw.randn(n, SIZE, SIZE, 3)
        pixels += noise * draw.randn(n, 1, 1, 3)
        if shuffled:
            labels = labels[draw.permutation(n)]
        splits[name] = CountedSplit(name, pixels.clip(0, 255).astype(np.uint8), labels, log)
    card = Card.model_validate(
        {
            "name": "colors",
            "task": task,
            "metric": metric,
            "classes": classes,
            "counts": dict(sizes),
        }
    )
    names = tuple(f"c{k}" for k in range(classes))
    return Dataset("colors", card, "f", CountedSplits(splits, log), names)  # type: ignore[arg-type]


class Pool(nn.Module):
    """Mean and spread of each channel: (B, 3, S, S) to (B, 6). Counts the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.seen: Counter[bool] = Counter()
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen[self.training] += len(images)
        both = torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)
        return self.drop(self.scale * both)


def make_backbone(module: nn.Module | None = None) -> Backbone:
    wrapped = wrap_module(module or Pool(), input_size=SIZE, name="pool")
    # Here equal digests mean equal features, as for a reference.
    return replace(wrapped, cacheable=True)
