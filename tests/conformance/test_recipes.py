"""Every recipe at hand builds its method, and those for small images take a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from transferbench.backbones.build import build_network
from transferbench.methods.method import BatchInfo, Context, Method
from transferbench.pretrain.recipe import load_recipe, recipe_names
from transferbench.registry import load, names

RECIPES = recipe_names()
STEPPED_UP_TO = 64  # pixels
CLASSES = 10
IMAGES = 1024


def build_from(recipe: Any) -> Method:
    method = load("methods", recipe.method)
    sizes = tuple(view.size for view in recipe.views for _ in range(view.count))
    steps_per_epoch = max(IMAGES // recipe.batch_size, 1)
    context = Context(
        num_images=IMAGES,
        num_classes=CLASSES if method.reads_labels else None,
        view_sizes=sizes,
        batch_size=recipe.batch_size,
        total_steps=steps_per_epoch * recipe.epochs,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.epochs,
    )
    settings = method.Settings.model_validate(recipe.settings)
    built: Method = method(settings, build_network(recipe.backbone, seed=0), context)
    return built.train()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_and_steps(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.method in names("methods")
    method = build_from(recipe)
    if recipe.largest_view > STEPPED_UP_TO:
        return
    batch = BatchInfo(
        indices=torch.arange(4),
        labels=torch.arange(4) if method.reads_labels else None,
        step=0,
        total_steps=method.context.total_steps,
        epoch=0,
        steps_per_epoch=method.context.steps_per_epoch,
        generator=torch.Generator().manual_seed(0),
    )
    views = tuple(torch.randn(4, 3, size, size) for size in method.context.view_sizes)
    method.before_step(batch)
    loss = method(views, batch)
    loss.backward()
    assert loss.isfinite()
    named = {group.name for group in recipe.optimizer.group}
    assert named <= set(method.parameter_groups())
