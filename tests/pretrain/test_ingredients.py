"""Every ingredient that a course on the subject names can be written into a recipe, and acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import transferbench.pretrain.loop as loop
from tests.pretrain.conftest import NoiseSource, make_recipe, train
from transferbench.pretrain.feed import Feed
from transferbench.pretrain.log import read_log
from transferbench.pretrain.loop import Trainer
from transferbench.pretrain.recipe import resolve
from transferbench.progress import SILENT

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain SGD": {"name": "sgd", "momentum": 0.0},
    "momentum": {"name": "sgd", "momentum": 0.9},
    "Nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "AdaGrad": {"name": "adagrad"},
    "RMSprop": {"name": "rmsprop"},
    "Adam": {"name": "adam"},
    "AdamW": {"name": "adamw"},
    "LARS": {"name": "lars"},
    "Adam then SGD": {"name": "adam-then-sgd", "switch_epoch": 1, "sgd_factor": 10.0},
}

SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant": ({"name": "constant"}, [1.0, 1.0, 1.0, 1.0]),
    "lambda": ({"name": "lambda", "formula": "0.5 ** epoch"}, [1.0, 0.5, 0.25, 0.125]),
    "step": ({"name": "step", "milestones": [2], "gamma": 0.5}, [1.0, 1.0, 0.5, 0.5]),
    "cosine with warm-up": (
        {"name": "fractional-cosine", "warmup_epochs": 2},
        [0.0, 0.5, 1.0, 0.5],
    ),
}

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "crop and resize": {"crop": {"scale": [0.1, 0.5]}},
    "flip": {"flip": 1.0},
    "color drop": {"grayscale": 1.0},
    "color jitter": {"jitter": {"p": 1.0, "brightness": 0.4, "hue": 0.1}},
    "rotation": {"rotate": 1.0},
    "cutout": {"cutout": {"length": 8}},
    "Gaussian noise": {"noise": {"std": 0.1}},
    "Gaussian blur": {"blur": {"p": 1.0, "size": 5}},
    "Sobel": {"sobel": 1.0},
    "solarise": {"solarize": 1.0},
    "RandAugment": {"randaugment": {"p": 1.0}},
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_an_optimizer_trains_from_a_recipe(name: str) -> None:
    trainer = Trainer(
        resolve(make_recipe(optimizer=OPTIMIZERS[name] | {"lr": 0.01})),
        NoiseSource().load(),
        device="cpu",
    )
    weight = next(trainer.method.backbone.parameters())
    with SILENT.task("", 1, "images") as trainer._task:
        for indices in trainer.feed.order(0)[:3]:
            before = weight.detach().clone()
            trainer._train_step(0, indices)
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_a_schedule_moves_the_rate_of_a_recipe(name: str) -> None:
    schedule, expected = SCHEDULES[name]
    recipe = make_recipe(epochs=4, schedule=schedule, optimizer={"name": "sgd", "lr": 1.0})
    trainer = Trainer(resolve(recipe), NoiseSource().load(), device="cpu")
    found = []
    for epoch in range(4):
        trainer.step = epoch * trainer.steps_per_epoch
        trainer._set_learning_rate(epoch)
        found.append(trainer.optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(expected)


def views_of(**view: Any) -> torch.Tensor:
    recipe = make_recipe(method="supervised", settings={}, views=[{"size": 16} | view])
    device = torch.device("cpu")
    feed = Feed(recipe, NoiseSource().load(), device=device, labelled=False, progress=SILENT)
    return feed.views(torch.arange(8), 0, "step", 0)[0]


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_an_augmentation_changes_the_views_of_a_recipe(name: str) -> None:
    found = views_of(**AUGMENTATIONS[name])
    assert found.shape == (8, 3, 16, 16)
    assert found.isfinite().all()
    assert not torch.equal(found, views_of())


def test_adam_then_sgd_continues_bit_for_bit_across_its_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = OPTIMIZERS["Adam then SGD"] | {"lr": 0.001}
    train(tmp_path / "straight", optimizer=optimizer)
    rates = [line["lr"] for line in read_log(tmp_path / "straight" / "log.jsonl") if "lr" in line]
    assert max(rates) > 0.005  # the later rate is ten times the earlier

    save = loop.save_checkpoint  # type: ignore[attr-defined]
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SECONDS_AT_EPOCH_END", 0.0)
    for at in (5, 6):  # the switch is after step 5

        def save_and_stop(checkpoint: Any, path: Path, at: int = at) -> None:
            save(checkpoint, path)
            if checkpoint.step == at:
                raise KeyboardInterrupt

        folder = tmp_path / str(at)
        monkeypatch.setattr(loop, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder, optimizer=optimizer)
        monkeypatch.setattr(loop, "save_checkpoint", save)
        train(folder, optimizer=optimizer)
        weights = "backbone.safetensors"
        assert (folder / weights).read_bytes() == (tmp_path / "straight" / weights).read_bytes()
