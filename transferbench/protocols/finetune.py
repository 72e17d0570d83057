"""Finetuning of the whole network (arXiv 2011.13377, appendix A.2).

Where text and code of the paper differ: the text chooses between augmentation and none by
validation (`augmentation = "paper"`), the code leaves that to a flag ("on", the default, or "off").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from transferbench.errors import UserError
from transferbench.optim.settings import OptimizerSettings
from transferbench.progress import SILENT, Progress
from transferbench.protocols.clock import Clock
from transferbench.protocols.labels import LabelledParameters
from transferbench.protocols.protocol import Outcome, Parameters
from transferbench.protocols.search import Search, choose, halving_rounds

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Card, Dataset
    from transferbench.measures.metrics import Array
    from transferbench.protocols.training import Plan

GIVEN_BY_THE_GRID = ("lr", "base_lr", "lr_scaling", "weight_decay", "group")


class FinetuneParameters(LabelledParameters):
    """What may be chosen about finetuning.

    Attributes
    ----------
    steps, batch_size : int
        Of each run.
    learning_rates, base_decays : tuple of float
        The grid, rates in the outer loop; a weight decay is a base divided by the rate.
    augmentation : {"on", "off", "paper"}
        Random resized crops with flips, images as they are tested, or whichever is better on
        validation, which doubles the grid.
    search : {"full", "halving"}
        "halving": all of the grid for a part of the steps, the best third for three times as many,
        and so on, until few are left for all of them; each round trains anew under a whole cosine.
    optimizer : table
        As in a recipe, without rate and decay, which the grid gives. `adam-then-sgd` has
        `switch_step`, the first step of SGD, for a recipe's `switch_epoch`.
    head_dropout : float
        Before the new linear layer.
    precision : {"auto", "float32", "bf16"}
        "auto": bf16 on CUDA, float32 elsewhere.
    compile : bool
        Whether torch compiles the network, which changes speed alone and so no job's key.
    resamples : int
        Bootstrap resamples of the test images for the standard error.
    """

    steps: int = Field(default=5000, ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.1, 0.01, 0.001, 0.0001), min_length=1
    )
    base_decays: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.0, 1e-6, 1e-5, 1e-4, 1e-3), min_length=1
    )
    augmentation: Literal["on", "off", "paper"] = "on"
    search: Literal["full", "halving"] = "full"
    optimizer: dict[str, Any] = Field(
        default_factory=lambda: {"name": "sgd", "momentum": 0.9, "nesterov": True}
    )
    head_dropout: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: bool = Field(default=False, exclude=True)
    resamples: int = Field(default=1000, ge=2)

    @field_validator("optimizer")
    @classmethod
    def _without_the_grid(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in GIVEN_BY_THE_GRID:
            if key in value:
                raise ValueError(f"'{key}' is not for the optimizer: the grid gives rate and decay")
        if "switch_epoch" in value:
            raise ValueError("write 'switch_step', the first step of SGD, for 'switch_epoch'")
        try:
            optimizer_settings(value, 1.0, 0.0)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            said = problem["msg"].removeprefix("Value error, ").replace("_epoch", "_step")
            raise ValueError(f"{where}: {said}" if where else said) from None
        return value

    @model_validator(mode="after")
    def _switch_in_time(self) -> FinetuneParameters:
        switch = self.optimizer.get("switch_step", 0)
        if switch >= self.steps:
            raise ValueError(f"switch_step ({switch}) is not before the end of {self.steps} steps")
        return self


def optimizer_settings(
    optimizer: dict[str, Any], learning_rate: float, weight_decay: float
) -> OptimizerSettings:
    """Return a run's optimizer; its epochs are steps."""
    renamed = {("switch_epoch" if k == "switch_step" else k): v for k, v in optimizer.items()}
    return OptimizerSettings.model_validate(
        {**renamed, "lr": learning_rate, "weight_decay": weight_decay}
    )


class Finetune:
    """Choose rate, decay and perhaps augmentation on validation, retrain, read test once.

    The last run starts from the pretrained weights again, on train + val.
    """

    name: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    Parameters: ClassVar[type[Parameters]] = FinetuneParameters

    def applies_to(self, card: Card) -> bool:
        """Return True: every task has a linear head."""
        return True

    def run(
        self,
        backbone: Backbone,
        dataset: Dataset,
        parameters: FinetuneParameters,
        *,
        seed: int,
        device: str,
        progress: Progress = SILENT,
    ) -> Outcome:
        """Evaluate; `seed` is that of heads, orders, cuts, the bootstrap, and of the labels."""
        from transferbench.data.splits import training_split
        from transferbench.measures.metrics import predictions, score
        from transferbench.measures.uncertainty import bootstrap_error
        from transferbench.protocols.cuts import plain_images, whole_images
        from transferbench.protocols.training import scores

        clock = Clock()
        splits = [dataset.splits[name] for name in ("train", "val") if name in dataset.splits]
        labels = np.concatenate([split.labels for split in splits])
        train, validation = training_split(dataset, parameters.labels, seed=seed)
        _check_labels(dataset, labels[train])
        plans = plans_of(parameters, device)
        halving = parameters.search == "halving"
        last = plans[0].steps
        rounds = halving_rounds(len(plans), last) if halving else [(len(plans), last)]
        searched = sum(runs * steps for runs, steps in rounds)
        augmented = any(plan.augment for plan in plans)
        plain = plain_images(backbone, splits, progress)
        whole = whole_images(backbone, splits, progress) if augmented else None
        clock.lap("images")
        with progress.task(f"finetuning on {dataset.name}", searched + last, "steps") as task:
            search = Search(
                backbone=backbone,
                dataset=dataset,
                labels=labels,
                plain=plain,
                whole=whole,
                train=train,
                validation=validation,
                seed=seed,
                device=device,
                compiled=parameters.compile,
                version=self.version,
                task=task,
            )
            trials = search.halving(plans) if halving else search.full(plans)
            best = choose(trials, last)
            clock.lap("search")
            if best.score is None:
                raise UserError(
                    f"no run of {backbone.name} on '{dataset.name}' had a finite loss and a score; "
                    "lower 'learning_rates'"
                )
            both = np.concatenate([train, validation])
            classifier = search.fit(best.plan, both)
            clock.lap("refit")
        if classifier is None:
            raise UserError(
                f"the last run of {backbone.name} on '{dataset.name}' lost its finite loss on "
                "train + val; lower 'learning_rates'"
            )
        test = dataset.splits["test"]
        shown = plain_images(backbone, [test], progress)
        every = np.arange(len(test))
        precision = best.plan.precision
        outputs = scores(classifier, backbone, shown, every, precision=precision, device=device)
        if not np.isfinite(outputs).all():
            raise UserError(f"{backbone.name} finetuned on '{dataset.name}' gives no finite scores")
        truth = test.labels
        value = score(dataset.metric, truth, outputs)
        if np.isnan(value):
            raise UserError(f"no test image of '{dataset.name}' has a label: there is no score")
        error = bootstrap_error(
            dataset.metric, truth, outputs, seed=seed, resamples=parameters.resamples
        )
        clock.lap("test")
        full = len(plans) * last
        return Outcome(
            metric=dataset.metric,
            value=value,
            standard_error=error,
            n=len(truth),
            details={
                "train": len(train),
                "validation": len(validation),
                "precision": precision,
                "compiled": parameters.compile,
                "chosen": best.told(),
                "trials": [trial.told() for trial in trials],
                "search_steps": searched,
                "full_grid_steps": full,
                "search_steps_saved": 1 - searched / full,
            },
            predictions=predictions(outputs) if dataset.task == "multiclass" else outputs,
            cost=clock.seconds,
        )


def plans_of(parameters: FinetuneParameters, device: str) -> list[Plan]:
    """Return the runs of the full grid in their order: augmented ones first, largest rate first."""
    from transferbench.protocols.grids import divided_pairs
    from transferbench.protocols.training import Plan

    asked = parameters.precision
    precision: Literal["float32", "bf16"] = "bf16" if device.startswith("cuda") else "float32"
    augments = {"on": (True,), "off": (False,), "paper": (True, False)}[parameters.augmentation]
    return [
        Plan(
            steps=parameters.steps,
            batch_size=parameters.batch_size,
            learning_rate=rate,
            weight_decay=decay,
            augment=augment,
            head_dropout=parameters.head_dropout,
            optimizer=optimizer_settings(parameters.optimizer, rate, decay),
            precision=precision if asked == "auto" else asked,
        )
        for augment in augments
        for rate, decay in divided_pairs(parameters.learning_rates, parameters.base_decays)
    ]


def _check_labels(dataset: Dataset, labels: Array) -> None:
    """Raise a UserError if there is nothing to learn."""
    if len(labels) == 0 or (labels == labels[0]).all():
        raise UserError(
            f"'{dataset.name}': all {len(labels)} training labels are equal: nothing can be learned"
        )
