"""Where the loss starts, and that the gradient lowers it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conformance.bed import (
    BATCH,
    CLASSES,
    STEPS_PER_EPOCH,
    Data,
    TinyNet,
    build,
    cases,
    optimizer_of,
    small,
    train_step,
)

METHODS = cases()


class Unrelated(nn.Module):
    """A backbone whose features (B, 64) are independent of the images and of each other."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seed = count()

    def forward(self, images: Tensor) -> Tensor:
        chance = torch.Generator().manual_seed(next(self.seed))
        return self.scale * torch.randn(len(images), 64, generator=chance)


def simclr_start(settings: Any) -> float:
    """ln(2N - 1) plus the spread of similarities of unrelated unit rows in D dimensions."""
    return math.log(2 * BATCH - 1) + 1 / (2 * settings.projector_output * settings.temperature**2)


def swav_start(settings: Any) -> float:
    return math.log(settings.prototypes) + 1 / (
        2 * settings.projector_output * settings.temperature**2
    )


def barlow_start(settings: Any) -> float:
    """Independent columns: a sample correlation has mean 0 and second moment 1 / (N - 1)."""
    width, chance = settings.projector_output, 1 / (BATCH - 1)
    diagonal, off_diagonal = 1 + chance, (width - 1) * chance
    return width * (diagonal + settings.off_diagonal_weight * off_diagonal)


def moco_v3_start(settings: Any) -> float:
    """4 T ln N plus the spread of similarities."""
    t = settings.temperature
    return 4 * t * (math.log(BATCH) + 1 / (2 * settings.projector_output * t**2))


def mae_start(settings: Any) -> float:
    """Normalised targets' mean square plus the variance of an untrained decoder's output."""
    pixels, width = 4 * 4 * 3, settings.decoder_width
    return (pixels - 1) / pixels + 2 * width / (width + pixels)


BANK: dict[str, Any] = {"projector_output": 64, "negatives": 512, "temperature": 0.2}


def softmax_bank_start(settings: Any) -> float:
    """ln(K + 1) plus the spread of similarities of unrelated unit rows in D dimensions."""
    spread = 1 / (2 * settings.projector_output * settings.temperature**2)
    return math.log(settings.negatives + 1) + spread


def nce_bank_start(settings: Any) -> float:
    """ln K + 1 plus the spread: the noise is as likely as the data."""
    spread = 1 / (2 * settings.projector_output * settings.temperature**2)
    return math.log(settings.negatives) + 1 + spread


def infomin_start(settings: Any) -> float:
    """ln(K + 1) plus the spread: nothing relates the puzzle's head to that of the keys."""
    spread = 1 / (2 * settings.projector_output * settings.temperature**2)
    return math.log(settings.queue_size + 1) + spread


def sela_start(settings: Any) -> float:
    return math.log(settings.prototypes[0]) + 1 / (
        2 * settings.projector_output * settings.temperature**2
    )


# The sheets' starting values for views that carry nothing in common: settings that make the
# closed form apply, the value, and how far a batch of this size may be from it.
START: dict[str, tuple[dict[str, Any], Callable[[Any], float], float]] = {
    "supervised": ({"label_smoothing": 0.0}, lambda _: math.log(CLASSES), 0.3),
    "simclr-v1": (
        {"projector_hidden": 64, "projector_output": 128, "temperature": 0.2},
        simclr_start,
        0.2,
    ),
    "insdis": (BANK, softmax_bank_start, 0.2),
    "insdis:nce": ({**BANK, "proximal": 0.0}, nce_bank_start, 0.5),
    "pirl": (BANK, softmax_bank_start, 0.2),
    "pirl:nce": ({**BANK, "projector_hidden": 128}, nce_bank_start, 0.5),
    "sela-v2": (
        {
            "projector_hidden": 256,
            "projector_output": 64,
            "prototypes": (30, 30),
            "first_labels": "random",
        },
        sela_start,
        0.15,
    ),
    # Both heads have a mean output, and the two directions are as unrelated as two rows are.
    "infomin": (
        {
            "projector_output": 1024,
            "queue_size": 512,
            "temperature": 0.2,
            "jigsaw_weight": 1.0,
        },
        infomin_start,
        0.35,
    ),
    "byol": ({"projector_output": 256}, lambda _: 4.0, 0.5),
    # Clusters tell little about views that have nothing in common with those clustered.
    "deepcluster-v2": (
        {
            "projector_hidden": 256,
            "projector_output": 64,
            "prototypes": (10, 10),
            "temperature": 0.2,
        },
        lambda settings: math.log(settings.prototypes[0]),
        0.1,
    ),
    "swav": (
        {"projector_hidden": 256, "projector_output": 64, "prototypes": 500},
        swav_start,
        0.15,
    ),
    "simsiam": ({"projector_output": 256, "predictor_hidden": 64}, lambda _: 0.0, 0.1),
    "barlow-twins": ({"projector_hidden": 512, "projector_output": 64}, barlow_start, 4.0),
    "simclr-v2": (
        {"projector_hidden": 64, "projector_output": 128, "temperature": 0.2},
        simclr_start,
        0.2,
    ),
    "moco-v3": ({"projector_hidden": 64, "projector_output": 256}, moco_v3_start, 0.1),
    "twist": (
        {"head_hidden": 256, "classes": 200},
        lambda _: 0.5 + (math.e - 1) / (2 * BATCH),
        0.05,
    ),
    "mae": ({"decoder_width": 64}, mae_start, 0.3),
}


@pytest.mark.parametrize("name", [name for name in METHODS if name in START])
def test_the_first_loss_is_the_sheet_s(name: str) -> None:
    settings, expected, tolerance = START[name]
    # A method with a network of its own needs its parts.
    backbone = Unrelated() if small(name).backbone is TinyNet else None
    method = build(name, backbone=backbone, **settings)
    data = Data(name)
    method.before_epoch(0, data.embed_all(method), data.method_chance)
    losses = []
    for step in range(16):
        views, batch = data.step(step)
        method.before_step(batch)
        with torch.no_grad():
            losses.append(float(method(views, batch)))
    start = sum(losses) / len(losses)
    assert start == pytest.approx(expected(method.settings), abs=tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls_over_thirty_steps_on_one_batch(name: str) -> None:
    method, data = build(name), Data(name)
    # Fill what is not learnt by gradient, without learning, then keep it still.
    still = optimizer_of(method, lr=0.0)
    for step in range(STEPS_PER_EPOCH):
        train_step(method, still, data, step)
    optimizer = optimizer_of(method, lr=0.1)
    losses = [
        train_step(method, optimizer, data, STEPS_PER_EPOCH + i, batch_of=0, frozen=True)
        for i in range(30)
    ]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.9 * losses[0], losses
