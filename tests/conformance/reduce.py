"""Recipes at a size that a test can step: every mechanism of the recipe, with small numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transferbench.data.dataset import Card, Dataset
from transferbench.pretrain.recipe import Recipe, parse_recipe, resolve

BATCH = 16
IMAGES = 192
SIDE = 32  # pixels of the largest view
LARGEST = 32  # integers up to this one are left as they are

RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
VIT = {"img_size": SIDE, "patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}

# Settings that the rule below would leave without sense.
OVERRIDES: dict[str, dict[str, Any]] = {
    "moco-v2": {"queue_size": 4 * BATCH},  # twice the batch divides it
    "pirl": {"patch": 8},
    "infomin": {"patch": 8},
}


def reduced(recipe: Recipe) -> Recipe:
    """Return a recipe with a batch, views, widths and memories that take a fraction of a second.

    Views keep their ratios, the network its family, and everything that the recipe switches on
    stays on.
    """
    values = resolve(recipe).plain()
    ratio = min(SIDE / recipe.largest_view, 1.0)
    for views in (values["views"], *(phase.get("views", []) for phase in values.get("phases", ()))):
        for view in views:
            _shrink_view(view, ratio)
    values["batch_size"] = BATCH
    values["settings"] = _small(values["settings"]) | OVERRIDES.get(recipe.method, {})
    family = VIT if values["backbone"]["name"].startswith("vit") else RESNET
    args = values["backbone"].get("args", {}) | family
    values["backbone"]["args"] = args
    for key in ("eval_size", "image_size", "precision"):
        values.pop(key, None)
    return resolve(parse_recipe(values, f"{recipe.where}, reduced"))


def _shrink_view(view: dict[str, Any], ratio: float) -> None:
    view["size"] = max(round(view["size"] * ratio), 8)
    if "blur" in view and view["blur"].get("size"):
        view["blur"]["size"] = max(round(view["blur"]["size"] * ratio), 3)


def _small(value: Any) -> Any:
    """Bring large integers down to multiples of the batch without changing their order."""
    if isinstance(value, dict):
        return {key: _small(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_small, value))
    if isinstance(value, int) and value > LARGEST:
        return BATCH * max(int(math.log2(value)) - 5, 1)
    return value


class Split:
    """Training images of coarse noise, in memory."""

    name = "train"
    native_size = 40
    skipped = 0
    fingerprint = "noise"

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        coarse = random.integers(0, 256, (IMAGES, 5, 5, 3), dtype=np.uint8)
        self.images = coarse.repeat(8, axis=1).repeat(8, axis=2)
        self.labels = np.arange(IMAGES) % 4

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, size: int | None = None, **_: Any) -> Any:
        return self.images


def noise() -> Dataset:
    """Return the data set of `Split`."""
    card = Card(name="noise", classes=4, task="multiclass", metric="top1")
    splits: Any = {"train": Split()}
    return Dataset("noise", card, "noise", splits, ("a", "b", "c", "d"))
