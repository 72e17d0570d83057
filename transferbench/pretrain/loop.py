"""The training loop, the same for every method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from transferbench import registry
from transferbench.backbones.build import build_network, check_size, place
from transferbench.backbones.export import export_backbone
from transferbench.data.dataset import Dataset
from transferbench.errors import UserError
from transferbench.methods.method import BatchInfo, Context, Method, Views
from transferbench.methods.parts.precision import raise_half
from transferbench.optim.build import build_optimizer, peak_rate, set_learning_rate
from transferbench.pretrain import PretrainingFailed
from transferbench.pretrain.checkpoint import (
    Checkpoint,
    load_checkpoint,
    random_states,
    save_checkpoint,
)
from transferbench.pretrain.curves import draw_curves
from transferbench.pretrain.feed import Feed, derived_seed
from transferbench.pretrain.interrupt import Interrupt
from transferbench.pretrain.log import Log, read_log
from transferbench.pretrain.monitors import Means, feature_health, signs_of_collapse
from transferbench.pretrain.recipe import Recipe
from transferbench.progress import SILENT, Progress

LOG_STEPS = 10
"""Optimizer steps between two lines of the log."""

SAVE_SECONDS = 30.0
"""A checkpoint is written this long after the last one."""

SAVE_SECONDS_AT_EPOCH_END = 5.0
"""At the end of an epoch, this long after the last one."""


class Trainer:
    """A method, its optimizer and its images, from a recipe to an exported backbone.

    Parameters
    ----------
    recipe : Recipe
        Resolved.
    dataset : Dataset
        Its training images are used; labels only where the method reads them.
    device : str, optional
        None takes CUDA where present.
    progress : Progress

    Raises
    ------
    UserError
        If recipe, data, method and device do not fit.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        *,
        device: str | None = None,
        progress: Progress = SILENT,
    ) -> None:
        kind: type[Method] = registry.load("methods", recipe.method)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        backbone = place(build_network(recipe.backbone, seed=recipe.seed), device)
        self.recipe = recipe
        self.title = f"{recipe.method} on {recipe.data_name}"
        self.fingerprint = dataset.fingerprint
        self.device = torch.device(device)
        self.progress = progress
        self.feed = Feed(
            recipe, dataset, device=self.device, labelled=kind.reads_labels, progress=progress
        )
        self.steps_per_epoch = self.feed.steps_per_epoch
        self.total_steps = recipe.epochs * self.steps_per_epoch
        context = Context(
            num_images=len(self.feed),
            num_classes=dataset.num_classes if kind.reads_labels else None,
            view_sizes=self.feed.view_sizes,
            batch_size=recipe.batch_size,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            epochs=recipe.epochs,
        )
        self.generator = torch.Generator().manual_seed(derived_seed(recipe.seed, "method"))
        self.random_state: list[Tensor] | None = None
        settings = kind.Settings.model_validate(recipe.settings)
        with self._own_random_state():
            for size in sorted({*self.feed.all_sizes, recipe.evaluation_size}):
                check_size(backbone, size, device=device, name=recipe.backbone.name)
            for sizes in self.feed.later_view_sizes:
                # Whether a later phase's views suit the method shows before the first step.
                kind(settings, deepcopy(backbone), replace(context, view_sizes=sizes))
            torch.manual_seed(derived_seed(recipe.seed, "heads"))
            self.method = kind(settings, backbone, context)
        self.method.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.method.train()
        self.optimizer = build_optimizer(
            recipe.optimizer, self.method.parameter_groups(), batch_size=recipe.batch_size
        )
        self.step = 0
        self.seconds = 0.0
        self.means = Means()
        self.warned: list[str] = []

    def run(self, folder: Path) -> None:
        """Train to the end, from the folder's checkpoint if it has one.

        Raises
        ------
        PretrainingFailed
            If the loss is no number; the last good checkpoint is kept.
        KeyboardInterrupt, SystemExit
            On SIGINT or SIGTERM, with the state saved.
        """
        self._checkpoint_file = folder / "checkpoint.pt"
        if self._checkpoint_file.is_file():
            self._load()
        images_left = (self.total_steps - self.step) * self.recipe.batch_size
        with (
            Log(folder / "log.jsonl", self.step) as self._log,
            Interrupt() as self._interrupt,
            self._own_random_state(),
            self.progress.task(self.title, images_left, "images") as self._task,
        ):
            self._resumed_at = self._saved_at = self._reported_at = time.monotonic()
            while self.step < self.total_steps:
                self._train_epoch(self.step // self.steps_per_epoch)

    def _train_epoch(self, epoch: int) -> None:
        """Train what is left of an epoch."""
        done = self.step % self.steps_per_epoch
        self._enter_phase(epoch)
        # A checkpoint at an epoch's start was written before this hook, any other one after it.
        if done == 0:
            self.method.before_epoch(epoch, self._embed_all(epoch), self.generator)
        for indices in self.feed.order(epoch)[done:]:
            features = self._train_step(epoch, indices)
            ended = self.step % self.steps_per_epoch == 0
            if ended or self.step % LOG_STEPS == 0:
                means = self._report(epoch)
                if ended:
                    self._watch(epoch, features, means)
            self._save_in_time(ended)

    def _train_step(self, epoch: int, indices: Tensor) -> Tensor | None:
        """Do one optimizer step; return the features (B, D) of a view if the method tells them.

        The order of the hooks is part of the methods' contract.
        """
        method, optimizer = self.method, self.optimizer
        views = self.feed.views(indices, epoch, "step", self.step)
        batch = BatchInfo(
            indices=indices.to(self.device),
            labels=self.feed.labels(indices),
            step=self.step,
            total_steps=self.total_steps,
            epoch=epoch,
            steps_per_epoch=self.steps_per_epoch,
            generator=self.generator,
        )
        self._set_learning_rate(epoch)
        method.logged.clear()

        method.before_step(batch)
        with self._autocast():
            embeddings = method.embed(views, batch)
        embeddings = {name: raise_half(value) for name, value in embeddings.items()}
        loss = method.loss(embeddings, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        method.after_backward(batch)
        optimizer.step()
        embeddings = {name: value.detach() for name, value in embeddings.items()}
        method.after_step(embeddings, batch)

        self.step += 1
        self.means.add({"loss": loss.detach(), **method.logged})
        self._task.advance(len(indices))
        return embeddings.get("features")

    # Learning rate and phases.

    def _enter_phase(self, epoch: int) -> None:
        """Give the groups that have no rate of their own the rate of the phase."""
        number, _, _ = self.feed.phase(epoch)
        rate = self.recipe.phases[number - 1].lr if number else None
        settings = self.recipe.optimizer
        own = {group.name for group in settings.group if group.lr or group.base_lr}
        for group in self.optimizer.param_groups:
            if group["name"] not in own:
                group["peak_lr"] = rate or peak_rate(settings, self.recipe.batch_size, None)

    def _set_learning_rate(self, epoch: int) -> None:
        """Set the rate of the coming step."""
        number, start, stop = self.feed.phase(epoch)
        schedule = self.recipe.phases[number - 1].schedule if number else None
        # A phase without a schedule of its own is a stretch of the recipe's.
        first, length = (start, stop - start) if schedule else (0, self.recipe.epochs)
        set_learning_rate(
            self.optimizer,
            schedule or self.recipe.schedule,
            self.step - first * self.steps_per_epoch,
            steps_per_epoch=self.steps_per_epoch,
            epochs=length,
        )

    def _embed_all(self, epoch: int) -> Callable[..., tuple[Tensor, Tensor]]:
        """Build the function that walks the whole set; see `methods.method.EmbedAll`."""

        @torch.no_grad()
        def embed_all(
            function: Callable[[Views], Tensor],
            *,
            views: Literal["plain", "train"] = "plain",
            training: bool = False,
        ) -> tuple[Tensor, Tensor]:
            self.method.train(training)
            # Stored sets lie class by class: not what batch norm should see while it trains.
            batches = list(self.feed.walk(*(("embed_all", epoch) if training else ())))
            outputs = []
            for number, indices in enumerate(batches):
                if views == "plain":
                    images: Views = (self.feed.plain(indices),)
                else:
                    images = self.feed.views(indices, epoch, "embed_all", epoch, number)
                with self._autocast():
                    outputs.append(raise_half(function(images)))
            self.method.train()
            return torch.cat(batches).to(self.device), torch.cat(outputs)

        return embed_all

    def _autocast(self) -> torch.autocast:
        half = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Use the run's own global random state; the caller's is as before afterwards."""
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if on_gpu else []):
            if self.random_state is not None:
                torch.set_rng_state(self.random_state[0])
                for state in self.random_state[1:]:
                    torch.cuda.set_rng_state(state, self.device)
            yield
            self.random_state = random_states(self.device)

    # What is told and kept.

    def _report(self, epoch: int) -> dict[str, float]:
        """Log the means since the last line and return them."""
        images, now = self.means.steps * self.recipe.batch_size, time.monotonic()
        means = self.means.take()
        if not math.isfinite(means["loss"]):
            self._fail(f"the loss is {means['loss']}")
        self._log.write(
            {
                "kind": "steps",
                "step": self.step,
                "epoch": epoch,
                "lr": self.optimizer.param_groups[0]["lr"],
                **means,
                "images_per_second": round(images / max(now - self._reported_at, 1e-9), 1),
            }
        )
        self._reported_at = now
        self._task.note = f"epoch {epoch + 1}/{self.recipe.epochs}, loss {means['loss']:.3f}"
        return means

    def _watch(self, epoch: int, features: Tensor | None, means: dict[str, float]) -> None:
        """Log the health of an epoch's last features, and warn once of what looks like collapse."""
        health = {} if features is None else feature_health(features)
        place = {"step": self.step, "epoch": epoch}
        self._log.write(
            {"kind": "epoch", **place, **health, "seconds": round(self._seconds_now(), 1)}
        )
        for monitor, warning in signs_of_collapse(self.recipe.method, health | means).items():
            if monitor not in self.warned:
                self.warned.append(monitor)
                self.progress.say(f"warning: after epoch {epoch + 1}: {warning}")
                self._log.write({"kind": "warning", **place, "text": warning})

    def _save_in_time(self, epoch_ended: bool) -> None:
        """Write a checkpoint if it is time for one; leave if a signal asked for it."""
        stop = self._interrupt.received is not None
        waited = time.monotonic() - self._saved_at
        due = SAVE_SECONDS_AT_EPOCH_END if epoch_ended else SAVE_SECONDS
        if stop or waited >= due or self.step == self.total_steps:
            self._save()
        if stop:
            self.progress.say(f"{self.title}: stopped at step {self.step}, the state is saved")
            self._interrupt.leave()

    def _save(self) -> None:
        self.seconds, self._resumed_at = self._seconds_now(), time.monotonic()
        states = dict(zip(("torch", "cuda"), random_states(self.device), strict=False))
        random = {"method": self.generator.get_state(), **states}
        checkpoint = Checkpoint(
            recipe=self.recipe.digest(),
            data=self.fingerprint,
            step=self.step,
            seconds=self.seconds,
            method=self.method.state_dict(),
            optimizer=self.optimizer.state_dict(),
            random=random,
            monitors={"means": self.means.state_dict(), "warned": self.warned},
        )
        if not checkpoint.finite():
            self._fail("the weights are no longer finite numbers")
        self._log.settle()
        save_checkpoint(checkpoint, self._checkpoint_file)
        self._saved_at = time.monotonic()

    def _load(self) -> None:
        checkpoint = load_checkpoint(self._checkpoint_file)
        if checkpoint.recipe != self.recipe.digest():
            raise UserError(f"{self._checkpoint_file} is of another recipe; begin anew: --restart")
        if checkpoint.data != self.fingerprint:
            raise UserError(
                f"the images of '{self.recipe.data}' are not those that the run in "
                f"{self._checkpoint_file.parent} began with; begin anew: --restart"
            )
        self.method.load_state_dict(checkpoint.method)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        kept = ("torch", "cuda") if self.device.type == "cuda" else ("torch",)
        self.random_state = [checkpoint.random[n] for n in kept if n in checkpoint.random]
        self.generator.set_state(checkpoint.random["method"])
        self.means.load_state_dict(checkpoint.monitors["means"], self.device)
        self.warned = list(checkpoint.monitors["warned"])
        self.step, self.seconds = checkpoint.step, checkpoint.seconds
        self.progress.say(f"{self.title}: continuing at step {self.step} of {self.total_steps}")

    def _fail(self, what: str) -> None:
        key = "lr" if self.recipe.optimizer.lr is not None else "base_lr"
        raise PretrainingFailed(
            f"{self.title} failed before step {self.step}: {what}; begin anew with a lower "
            f"learning rate (--set optimizer.{key}=... --restart)"
        )

    def _seconds_now(self) -> float:
        return self.seconds + time.monotonic() - self._resumed_at

    def export(self, folder: Path) -> None:
        """Write the curves, then the backbone, of a run that is done."""
        recipe = self.recipe
        draw_curves(read_log(folder / "log.jsonl"), folder / "loss.png", title=self.title)
        crop = recipe.views[0].crop
        export_backbone(
            folder,
            self.method.backbone,
            recipe.backbone,
            name=recipe.method,
            input_size=recipe.evaluation_size,
            mean=recipe.normalization.mean,
            std=recipe.normalization.std,
            interpolation="bilinear" if crop is None else crop.interpolation,
        )

    def about_data(self) -> dict[str, Any]:
        """What `run.json` says about the images."""
        return {
            "fingerprint": self.fingerprint,
            "images": len(self.feed),
            "image_size": self.feed.image_size,
            "skipped": self.feed.skipped,
        }

    def about_cost(self) -> dict[str, Any]:
        """What `run.json` says about time, once the run is done."""
        images = self.total_steps * self.recipe.batch_size
        return {
            "steps": self.total_steps,
            "seconds": round(self.seconds, 1),
            # Sums are split over threads, so bits are the same only at the same number of them.
            "threads": torch.get_num_threads(),
            "images_per_second": round(images / max(self.seconds, 1e-9), 1),
        }

    @property
    def device_name(self) -> str:
        """The GPU's name, or the type of another device."""
        gpu = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if gpu else self.device.type
