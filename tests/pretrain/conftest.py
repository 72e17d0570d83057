"""A data set in memory and a recipe that trains on it in a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transferbench.data.dataset import Card, Dataset
from transferbench.pretrain.recipe import Recipe, parse_recipe
from transferbench.pretrain.run import Run, pretrain


class NoiseSplit:
    """Training images of noise, without a cache or a decoder."""

    name = "train"
    native_size = 16
    skipped = 0

    def __init__(self, count: int, labels: Any = None) -> None:
        random = np.random.default_rng(0)
        self.images = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        self.labels = np.arange(count) % 4 if labels is None else labels
        self.fingerprint = f"noise-{count}"

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, size: int | None = None, **_: Any) -> Any:
        assert size in (None, 16)
        return self.images


@dataclass
class NoiseSource:
    """A source of noise images; `version` stands for their content."""

    count: int = 40
    version: str = "1"
    task: str = "multiclass"
    name: str = "noise"
    kind: str = "embedded"
    loads: int = 0

    def identity(self) -> str:
        return f"noise-{self.count}-{self.version}"

    @property
    def card(self) -> Card:
        metric = "top1" if self.task == "multiclass" else "map11"
        return Card(name="noise", classes=4, task=self.task, metric=metric)

    def load(self, **_: Any) -> Any:
        self.loads += 1
        splits: Any = {"train": NoiseSplit(self.count)}
        return Dataset("noise", self.card, self.identity(), splits, ("a", "b", "c", "d"))


def recipe_values(**changes: Any) -> dict[str, Any]:
    """A SwAV recipe, the method with the most state, of 5 steps an epoch on 40 images."""
    values: dict[str, Any] = {
        "method": "swav",
        "data": "noise",
        "epochs": 3,
        "batch_size": 8,
        "backbone": {
            "name": "resnet18",
            "args": {"layers": [1] * 4, "channels": [8] * 4, "stem_width": 8},
        },
        "views": [
            {"count": 2, "size": 16, "crop": {"scale": [0.3, 1.0]}, "flip": 0.5},
            {"size": 8, "crop": {"scale": [0.1, 0.3]}, "jitter": {"hue": 0.1}},
        ],
        "settings": {
            "projector_hidden": 16,
            "projector_output": 8,
            "prototypes": 6,
            "queue_length": 16,
            "queue_from_epoch": 1,
        },
        "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 1e-4},
        "schedule": {"name": "cosine", "warmup_epochs": 1},
    }
    return values | changes


def make_recipe(**changes: Any) -> Recipe:
    return parse_recipe(recipe_values(**changes), "test.toml")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks of a few channels are slower on two threads, by far so on a busy machine."""
    import torch  # here, because a test imports this file to see that nothing else does

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def source() -> NoiseSource:
    return NoiseSource()


def train(folder: Path, source: Any = None, **changes: Any) -> Run:
    """Pretrain the recipe with `changes` on the CPU."""
    return pretrain(make_recipe(**changes), folder, source=source or NoiseSource(), device="cpu")
