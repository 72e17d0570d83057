"""One finetuning run: all of a backbone and a new linear head, trained for a number of steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from transferbench.backbones.build import first_line
from transferbench.errors import UserError
from transferbench.optim.build import build_optimizer, set_learning_rate
from transferbench.optim.settings import OptimizerSettings, ScheduleSettings
from transferbench.protocols.arithmetic import arithmetic
from transferbench.protocols.cuts import Images, random_cuts
from transferbench.protocols.features import batch_size as batch_that_fits
from transferbench.storage import digest

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone
    from transferbench.measures.metrics import Array, Floats
    from transferbench.progress import Task

Positions = NDArray[np.int64]
Precision = Literal["float32", "bf16"]
COSINE = ScheduleSettings(name="fractional-cosine")
LOOK_EVERY = 50
"""Steps between two looks at the loss, each of which waits for the device."""


@dataclass(frozen=True)
class Plan:
    """What decides one run, beside its images and the backbone it starts from.

    Attributes
    ----------
    steps, batch_size : int
    learning_rate, weight_decay : float
        The rate falls to 0 along half a cosine; the decay is that of every parameter.
    augment : bool
        Random cuts and flips, or the images as they are tested.
    head_dropout : float
        Before the new linear layer.
    optimizer : OptimizerSettings
        With rate and decay as above. `switch_epoch` counts steps: a run has no epochs.
    precision : {"float32", "bf16"}
        "bf16": autocast of forward pass and loss.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    augment: bool
    head_dropout: float
    optimizer: OptimizerSettings
    precision: Precision


class Classifier(nn.Module):
    """Normalised images (B, 3, S, S) to class scores (B, K)."""

    def __init__(self, backbone: nn.Module, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        scores: Tensor = self.head(self.drop(self.backbone(images)))
        return scores


def new_classifier(backbone: Backbone, classes: int, plan: Plan, device: str) -> Classifier:
    """Copy a backbone, which stays as it is, and put a new head on it.

    The head's values come from torch's random state.

    Raises
    ------
    UserError
        If the network refuses images of its input size, or gives anything but (B, D).
    """
    module = copy.deepcopy(backbone.module).to(device).eval()
    side = backbone.input_size
    try:
        with torch.no_grad():
            features = module(torch.zeros(2, 3, side, side, device=device))
    # Each architecture checks its input in its own way, or breaks where it does not.
    except Exception as error:
        raise UserError(
            f"{backbone.name} does not take images of {side} px: {first_line(error)}"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(getattr(features, "shape", ())) or type(features).__name__
        raise UserError(f"{backbone.name} gives {shape} for 2 images, but features must be (2, D)")
    classifier = Classifier(module, features.shape[1], classes, plan.head_dropout)
    classifier.requires_grad_(True)
    return classifier.to(device).to(memory_format=torch.channels_last)


def train(
    backbone: Backbone,
    images: Images,
    labels: Array,
    positions: Positions,
    plan: Plan,
    *,
    classes: int,
    seed: int,
    device: str,
    compiled: bool = False,
    task: Task | None = None,
) -> Classifier | None:
    """Finetune a copy of a backbone.

    Parameters
    ----------
    backbone : Backbone
        Left as it is.
    images : Images
        Whole ones where `plan.augment`, else plain ones.
    labels : array (N,) of class indices, or (N, K), positive where an image has a label
        Cross-entropy, or the mean binary cross-entropy over batch and labels.
    positions : array (M,)
        Images to train on. They are shuffled anew each time all were seen; the last batch of a
        round may be small, but one image alone is left out: batch norm cannot take it.
    plan : Plan
    classes, seed : int
        Equal seeds give equal heads, orders and cuts; torch's own random state comes back.
    device : str
    compiled : bool
        Compile the network.
    task : Task, optional
        Counts steps.

    Returns
    -------
    Classifier or None
        None where the loss was no longer a finite number.
    """
    single = labels.ndim == 1
    targets = torch.from_numpy(
        labels.astype(np.int64) if single else (labels > 0).astype(np.float32)
    )
    targets = targets.to(device)
    criterion: nn.Module = nn.CrossEntropyLoss() if single else nn.BCEWithLogitsLoss()
    generator = torch.Generator().manual_seed(_seed(seed, "cuts"))
    with _random_state(_seed(seed, "head"), device), _fast(device):
        classifier = new_classifier(backbone, classes, plan, device)
        optimizer = build_optimizer(
            plan.optimizer,
            {"all": list(classifier.parameters())},
            batch_size=plan.batch_size,
        )
        network: Any = torch.compile(classifier) if compiled else classifier
        classifier.train()
        order = _order(positions, plan.batch_size, np.random.RandomState(_seed(seed, "order")))
        loss = torch.zeros(())
        for step, (chosen, batch) in enumerate(_batches(images, order, plan.steps, device)):
            set_learning_rate(optimizer, COSINE, step, steps_per_epoch=1, epochs=plan.steps)
            shown = _shown(backbone, images, chosen, batch, generator)
            with _autocast(plan.precision, device):
                loss = criterion(network(shown), targets[torch.from_numpy(chosen).to(device)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if task is not None:
                task.advance()
            if step % LOOK_EVERY == LOOK_EVERY - 1 and not bool(loss.isfinite()):
                return None
        classifier.eval()
        return classifier if bool(loss.isfinite()) else None


def scores(
    classifier: Classifier,
    backbone: Backbone,
    images: Images,
    positions: Positions,
    *,
    precision: Precision,
    device: str,
) -> Floats:
    """Return the scores (M, K) of plain images at `positions`, float64."""
    size = batch_that_fits(backbone.input_size)
    parts = [positions[start : start + size] for start in range(0, len(positions), size)]
    found = []
    with torch.inference_mode(), _fast(device), _autocast(precision, device):
        for part in parts:
            given = backbone.normalize(torch.from_numpy(images.read(part)).to(device))
            found.append(classifier(given).double().cpu().numpy())
    result: Floats = np.concatenate(found)
    return result


def _shown(
    backbone: Backbone,
    images: Images,
    chosen: Positions,
    batch: Tensor,
    generator: torch.Generator,
) -> Tensor:
    if images.sides is None:
        return backbone.normalize(batch)
    return random_cuts(backbone, batch, images.sides[chosen], generator)


def _order(
    positions: Positions, batch_size: int, state: np.random.RandomState
) -> Iterator[Positions]:
    while True:
        shuffled = state.permutation(positions)
        for start in range(0, len(shuffled), batch_size):
            chosen = shuffled[start : start + batch_size]
            if len(chosen) > 1 or len(shuffled) == 1:
                yield chosen


def _batches(
    images: Images, order: Iterator[Positions], steps: int, device: str
) -> Iterator[tuple[Positions, Tensor]]:
    """Yield batches on the device; on a GPU the next is read while one is trained on."""

    def read() -> tuple[Positions, Tensor]:
        chosen = next(order)
        return chosen, torch.from_numpy(images.read(chosen))

    # On the CPU a thread would take its time from the training.
    if not device.startswith("cuda"):
        for _ in range(steps):
            chosen, batch = read()
            yield chosen, batch.to(device)
        return
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read)
        for step in range(steps):
            chosen, batch = coming.result()
            if step + 1 < steps:
                coming = reader.submit(read)
            yield chosen, batch.pin_memory().to(device, non_blocking=True)


def _seed(seed: int, purpose: str) -> int:
    return int(digest(f"{seed}/{purpose}")[:8], 16)


@contextmanager
def _random_state(seed: int, device: str) -> Iterator[None]:
    """Seed torch for a while."""
    gpus = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


def _fast(device: str) -> AbstractContextManager[None]:
    """Let cuDNN choose among its algorithms; sizes hardly change."""
    return arithmetic(tf32=True, benchmark=device.startswith("cuda"), deterministic=False)


def _autocast(precision: Precision, device: str) -> AbstractContextManager[Any]:
    kind = device.partition(":")[0]
    # Within the autocast of who calls, weights kept in half precision would outlive their step.
    return torch.autocast(
        kind, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )
