"""Finetuning runs beside the bare forward, backward and optimizer step on ready tensors."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from transferbench.backbones.backbone import Backbone
from transferbench.backbones.reference import parse_reference
from transferbench.protocols.cuts import Images
from transferbench.protocols.finetune import FinetuneParameters, plans_of
from transferbench.protocols.training import Plan, new_classifier, train

ROUNDS = 3
CASES = [("resnet10t", 32, 8), ("resnet18", 64, 4), ("tf_efficientnet_lite0", 128, 2)]
CLASSES = 10


def bare(backbone: Backbone, plan: Plan) -> float:
    """Return CPU seconds of the steps alone, on one normalised batch."""
    classifier = new_classifier(backbone, CLASSES, plan, "cpu").train()
    optimizer = torch.optim.SGD(classifier.parameters(), 0.01, momentum=0.9, nesterov=True)
    side = backbone.input_size
    batch = torch.randn(plan.batch_size, 3, side, side).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (plan.batch_size,))
    start = time.process_time()
    for _ in range(plan.steps):
        loss = nn.functional.cross_entropy(classifier(batch), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.process_time() - start


def whole(backbone: Backbone, plan: Plan, images: Images) -> float:
    """Return CPU seconds of a run, cuts and flips included."""
    labels = np.arange(len(images.stores[0])) % CLASSES
    start = time.process_time()
    train(
        backbone, images, labels, np.arange(len(labels)), plan,
        classes=CLASSES, seed=0, device="cpu",
    )  # fmt: skip
    return time.process_time() - start


def main() -> None:
    """Print a table; the target is 90 % of the bare step. Both sides take turns."""
    table = Table("network", "side", "bare images/s", "finetune images/s", "share", "target")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"TRANSFERBENCH_CACHE": folder}),
    ):
        for name, side, steps in CASES:
            backbone = parse_reference(f"random:{name}@{side}", seed=0).load("cpu")
            (plan, *_) = plans_of(FinetuneParameters(steps=steps, learning_rates=(0.01,)), "cpu")
            noise = np.random.RandomState(0).randint(0, 256, (512, 2 * side, 2 * side, 3))
            images = Images([noise.astype(np.uint8)], np.full((512, 2), 2 * side))
            pairs = [(bare(backbone, plan), whole(backbone, plan, images)) for _ in range(ROUNDS)]
            count = steps * plan.batch_size
            rates = [count / min(pair[i] for pair in pairs) for i in (0, 1)]
            share = statistics.median(a / b for a, b in pairs)
            table.add_row(
                name, str(side), f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{share:.0%}", "90%"
            )
    Console().print(f"CPU seconds, {torch.get_num_threads()} threads, best of {ROUNDS}")
    Console().print(table)


if __name__ == "__main__":
    main()
