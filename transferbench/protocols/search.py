"""The search among finetuning runs: all of a grid, or the promising ones longer and longer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transferbench.storage import cache_folder, digest, write_atomic

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Dataset
    from transferbench.measures.metrics import Array
    from transferbench.progress import Task
    from transferbench.protocols.cuts import Images
    from transferbench.protocols.training import Classifier, Plan, Positions

KEPT_BY_HALVING = 3
"""Of so many runs of a round the best one goes on, with so many times the steps."""


@dataclass(frozen=True)
class Trial:
    """A run of the search, and what came of it.

    Attributes
    ----------
    score : float or None
        The data set's metric on validation; None where the loss left the finite numbers, or no
        validation image has a label.
    """

    plan: Plan
    score: float | None

    def told(self) -> dict[str, Any]:
        """The trial as JSON values."""
        plan = self.plan
        return {
            "learning_rate": plan.learning_rate,
            "weight_decay": plan.weight_decay,
            "augmentation": plan.augment,
            "steps": plan.steps,
            "validation": self.score,
        }


@dataclass(frozen=True)
class Search:
    """The runs of one evaluation; each is kept in the cache by everything that decides it.

    Attributes
    ----------
    labels : array (N,) or (N, K)
        Of all training images.
    plain, whole : Images
        All training images; whole ones where a plan augments.
    train, validation : arrays
        Positions among them.
    version : int
        Of the protocol.
    task : Task
        Counts steps.
    """

    backbone: Backbone
    dataset: Dataset
    labels: Array
    plain: Images
    whole: Images | None
    train: Positions
    validation: Positions
    seed: int
    device: str
    compiled: bool
    version: int
    task: Task

    def full(self, plans: Sequence[Plan]) -> list[Trial]:
        """Run them all."""
        return [self._try(plan) for plan in plans]

    def halving(self, plans: Sequence[Plan]) -> list[Trial]:
        """Run the best ones longer and longer; the last round, with all steps, comes last."""
        trials: list[Trial] = []
        left = list(plans)
        for runs, steps in halving_rounds(len(plans), plans[0].steps):
            if trials:
                scores = [_worth(trial) for trial in trials[-len(left) :]]
                # Stable: equal scores keep the order of the grid.
                best = np.argsort([-score for score in scores], kind="stable")[:runs]
                left = [left[i] for i in sorted(best)]
            trials += [self._try(shortened(plan, steps)) for plan in left]
        return trials

    def _try(self, plan: Plan) -> Trial:
        from transferbench.measures.metrics import score
        from transferbench.protocols.training import scores

        path = self._path(plan)
        kept = None if path is None else _kept(path)
        if kept is not None:
            self.task.advance(plan.steps)
            return Trial(plan, kept["validation"])
        found: float | None = None
        classifier = self.fit(plan, self.train)
        if classifier is not None:
            outputs = scores(
                classifier,
                self.backbone,
                self.plain,
                self.validation,
                precision=plan.precision,
                device=self.device,
            )
            if np.isfinite(outputs).all():
                value = score(self.dataset.metric, self.labels[self.validation], outputs)
                found = None if np.isnan(value) else value
        if path is not None:
            write_atomic(path, json.dumps({"validation": found}))
        return Trial(plan, found)

    def fit(self, plan: Plan, positions: Positions) -> Classifier | None:
        """Train on some of the images; None where the loss left the finite numbers."""
        from transferbench.protocols.training import train

        images = self.whole if plan.augment else self.plain
        assert images is not None
        before = self.task.done
        classifier = train(
            self.backbone,
            images,
            self.labels,
            positions,
            plan,
            classes=self.dataset.num_classes,
            seed=self.seed,
            device=self.device,
            compiled=self.compiled,
            task=self.task,
        )
        self.task.advance(plan.steps - (self.task.done - before))
        return classifier

    def _path(self, plan: Plan) -> Path | None:
        """Where a run's score is kept; None for a backbone that no digest identifies."""
        if not self.backbone.cacheable:
            return None
        decided = {**vars(plan), "optimizer": plan.optimizer.model_dump(mode="json")}
        positions = [digest(part.tobytes()) for part in (self.train, self.validation)]
        key = [self.version, self.backbone.digest, self.dataset.fingerprint, positions]
        kind = self.device.partition(":")[0]
        return cache_folder("finetune") / f"{digest([*key, decided, self.seed, kind])[:32]}.json"


def shortened(plan: Plan, steps: int) -> Plan:
    """Return a plan with fewer steps; where its optimizer switches, it does so after as large a
    share of them.
    """
    switch = plan.optimizer.switch_epoch
    if switch is None or steps == plan.steps:
        return replace(plan, steps=steps)
    scaled = {"switch_epoch": max(1, round(switch * steps / plan.steps))}
    return replace(plan, steps=steps, optimizer=plan.optimizer.model_copy(update=scaled))


def halving_rounds(runs: int, steps: int) -> list[tuple[int, int]]:
    """Return how many runs each round of successive halving has, and their steps: last all."""
    counts = [runs]
    while counts[-1] > KEPT_BY_HALVING:
        counts.append(math.ceil(counts[-1] / KEPT_BY_HALVING))
    shares = [KEPT_BY_HALVING**i for i in reversed(range(len(counts)))]
    return [(n, max(1, steps // share)) for n, share in zip(counts, shares, strict=True)]


def choose(trials: Sequence[Trial], steps: int) -> Trial:
    """Return the first of the best trials that ran for all steps."""
    return max((t for t in trials if t.plan.steps == steps), key=_worth)


def _worth(trial: Trial) -> float:
    return -math.inf if trial.score is None else trial.score


def _kept(path: Path) -> dict[str, Any] | None:
    """Return what a run gave; None if it was not run, or its file is damaged."""
    try:
        found = json.loads(path.read_text())
        value = found["validation"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    sound = value is None or (isinstance(value, float | int) and 0 <= value <= 1)
    return {"validation": value} if sound else None
