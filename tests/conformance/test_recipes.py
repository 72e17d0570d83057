"""Every recipe at hand builds its method as it is, and takes steps at reduced size."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests.conformance.reduce import noise, reduced
from transferbench.backbones.build import build_network
from transferbench.methods.method import Context, Method
from transferbench.optim.build import build_optimizer
from transferbench.pretrain.loop import Trainer
from transferbench.pretrain.recipe import Recipe, load_recipe, recipe_names, resolve
from transferbench.progress import SILENT
from transferbench.registry import load, names

RECIPES = recipe_names()


@dataclass(frozen=True)
class Set:
    """What a recipe's data set is like, without its images."""

    images: int
    classes: int


SETS = {"cifar10": Set(50_000, 10), "imagenet": Set(1_281_167, 1000)}


def about(data: str) -> Set:
    if data in SETS:
        return SETS[data]
    card = load("datasets", data).card
    return Set(card.counts["train"], card.classes)


def build_as_it_is(recipe: Recipe) -> Method:
    """Make the method at full size, on a device that has no memory to fill."""
    kind: type[Method] = load("methods", recipe.method)
    data = about(recipe.data)
    steps_per_epoch = data.images // recipe.batch_size
    context = Context(
        num_images=data.images,
        num_classes=data.classes if kind.reads_labels else None,
        view_sizes=tuple(view.size for view in recipe.views for _ in range(view.count)),
        batch_size=recipe.batch_size,
        total_steps=steps_per_epoch * recipe.epochs,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.epochs,
    )
    settings = kind.Settings.model_validate(recipe.settings)
    with torch.device("meta"):
        return kind(settings, build_network(recipe.backbone), context)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_builds_as_it_is(name: str) -> None:
    recipe = resolve(load_recipe(name))
    method = build_as_it_is(recipe)
    groups = method.parameter_groups()
    optimizer = build_optimizer(recipe.optimizer, groups, batch_size=recipe.batch_size)
    assert sum(len(group["params"]) for group in optimizer.param_groups) > 0
    empty = [group.name for group in recipe.optimizer.group if not groups[group.name]]
    assert not empty, "these groups of the recipe hold no parameter"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_steps_at_reduced_size(name: str) -> None:
    """In the first epoch, the first of each phase, and the last, by which all is in use."""
    recipe = reduced(load_recipe(name))
    trainer = Trainer(recipe, noise(), device="cpu")
    epochs = {0, *(phase.from_epoch for phase in recipe.phases), recipe.epochs - 1}
    with SILENT.task("", 1, "images") as trainer._task:
        for epoch in sorted(epochs):
            trainer.step = epoch * trainer.steps_per_epoch
            trainer._enter_phase(epoch)
            trainer.method.before_epoch(epoch, trainer._embed_all(epoch), trainer.generator)
            for indices in trainer.feed.order(epoch)[:2]:
                trainer._train_step(epoch, indices)
            losses = trainer.means.take()
            assert torch.tensor(list(losses.values())).isfinite().all(), (epoch, losses)
    assert all(weight.isfinite().all() for weight in trainer.method.state_dict().values())


@pytest.mark.parametrize("scale", ["tiny", "small", "imagenet"])
def test_every_method_of_the_package_has_a_recipe(scale: str) -> None:
    own = [
        n for n in names("methods") if load("methods", n).__module__.startswith("transferbench.")
    ]
    lacking = [name for name in own if f"{scale}/{name}" not in RECIPES]
    assert not lacking, f"no {scale} recipe of {', '.join(lacking)}"
