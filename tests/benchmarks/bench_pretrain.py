"""The engine beside the bare forward, backward and optimizer step on tensors made beforehand."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from transferbench.data.sources import find_source
from transferbench.methods.method import BatchInfo
from transferbench.pretrain.loop import Trainer
from transferbench.pretrain.recipe import Recipe, load_recipe, resolve

ROUNDS = 4
COMMON = (
    "crop={scale=[0.3,1.0]},flip=0.5,grayscale=0.2,"
    "jitter={p=0.8,brightness=0.4,contrast=0.4,saturation=0.4,hue=0.1}"
)
CASES = {
    # title: (recipe, overrides, target share)
    "simclr-v1, tiny": ("tiny/simclr-v1", [], 0.85),
    "byol, tiny": ("tiny/byol", [], None),
    "swav, tiny, 2 + 6 crops": (
        "tiny/swav",
        [f"views=[{{count=2,size=32,{COMMON}}},{{count=6,size=16,{COMMON}}}]"],
        0.70,
    ),
    "supervised, tiny": ("tiny/supervised", [], None),
}


def engine_epoch(recipe: Recipe) -> tuple[float, Trainer]:
    """Train one epoch as `pretrain` does: views, log, health of features, a checkpoint.

    Returns the seconds of the epoch, and the trainer.
    """
    trainer = Trainer(recipe, find_source(recipe.data, data_root=None).load(), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        trainer.run(Path(folder))
        return time.perf_counter() - start, trainer


def bare_epoch(trainer: Trainer) -> float:
    """Repeat the bare step on one batch of views, as often as an epoch has steps; seconds."""
    method, optimizer = trainer.method, trainer.optimizer
    indices = trainer.feed.order(0)[0]
    views = trainer.feed.views(indices, 0, "step", 0)
    steps = trainer.steps_per_epoch
    batch = BatchInfo(
        indices=indices,
        labels=trainer.feed.labels(indices),
        step=steps,
        total_steps=trainer.total_steps,
        epoch=0,
        steps_per_epoch=steps,
        generator=trainer.generator,
    )
    start = time.perf_counter()
    for _ in range(steps):
        loss = method.loss(method.embed(views, batch), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    """Print a table of methods; both sides take turns, and each shows its best epoch."""
    table = Table("recipe", "engine, images/s", "bare step, images/s", "share", "target")
    for title, (name, overrides, target) in CASES.items():
        recipe = resolve(load_recipe(name, overrides=["epochs=1", *overrides]))
        engine, bare = [], []
        for _ in range(ROUNDS):
            seconds, trainer = engine_epoch(recipe)
            engine.append(seconds)
            bare.append(bare_epoch(trainer))
        images = trainer.steps_per_epoch * recipe.batch_size
        table.add_row(
            title,
            f"{images / min(engine):,.0f}",
            f"{images / min(bare):,.0f}",
            f"{min(bare) / min(engine):.0%}",
            "" if target is None else f"{target:.0%}",
        )
    Console().print(f"One epoch of `drawn`, {torch.get_num_threads()} threads, best of {ROUNDS}")
    Console().print(table)


if __name__ == "__main__":
    main()
