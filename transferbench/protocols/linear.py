"""Linear evaluation: multinomial logistic regression on frozen features (arXiv 2011.13377, A.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from transferbench.errors import UserError
from transferbench.progress import SILENT, Progress
from transferbench.protocols.clock import Clock
from transferbench.protocols.protocol import Outcome, Parameters

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Card, Dataset
    from transferbench.measures.metrics import Array, Metric
    from transferbench.protocols.logistic import Path, Task
    from transferbench.protocols.newton import Point


class LinearParameters(Parameters):
    """What may be chosen about linear evaluation.

    Attributes
    ----------
    start, stop, count
        The weight decays tried: `count` values from 10**start to 10**stop, equal in ratio.
    tol : float
        Largest relative duality gap at which a solution counts as one.
    resamples : int
        Bootstrap resamples of the test images for the standard error.
    """

    start: float = Field(default=-6, ge=-12, le=12)
    stop: float = Field(default=5, ge=-12, le=12)
    count: int = Field(default=45, ge=1, le=1000)
    tol: float = Field(default=1e-4, gt=0, lt=1)
    resamples: int = Field(default=1000, ge=2)

    @model_validator(mode="after")
    def _in_order(self) -> LinearParameters:
        if self.stop < self.start:
            raise ValueError(f"stop ({self.stop:g}) is below start ({self.start:g})")
        return self


class Linear:
    """Choose the weight decay on validation, refit on train + val, read the test split once."""

    name: ClassVar[str] = "linear"
    version: ClassVar[int] = 2
    Parameters: ClassVar[type[Parameters]] = LinearParameters

    def applies_to(self, card: Card) -> bool:
        """Return True: every task has a linear classifier."""
        return True

    def run(
        self,
        backbone: Backbone,
        dataset: Dataset,
        parameters: LinearParameters,
        *,
        seed: int,
        device: str,
        progress: Progress = SILENT,
    ) -> Outcome:
        """Evaluate; `seed` is that of the bootstrap, for nothing else is left to chance."""
        from transferbench.data.splits import validation_split
        from transferbench.measures.metrics import predictions, score
        from transferbench.measures.uncertainty import bootstrap_error
        from transferbench.protocols.features import gather
        from transferbench.protocols.grids import weight_decays

        clock = Clock()
        features, labels = gather(
            backbone, dataset, ("train", "val"), device=device, progress=progress
        )
        train, validation = validation_split(dataset)
        clock.lap("features")

        decays = weight_decays(parameters.start, parameters.stop, parameters.count)
        tol = parameters.tol

        def fit(x: Array, y: Array, chosen: list[float], title: str) -> Path:
            return _fit(x, y, chosen, dataset, tol, device, progress, title)

        path = fit(features[train], labels[train], decays, "sweep")
        curve = validation_curve(path, features[validation], labels[validation], dataset.metric)
        best = select(curve)
        clock.lap("sweep")
        final = fit(features, labels, [decays[best]], "refit").points[0]
        clock.lap("refit")

        test, truth = gather(backbone, dataset, ("test",), device=device, progress=progress)
        outputs = final.scores(test)
        value = score(dataset.metric, truth, outputs)
        if np.isnan(value):
            raise UserError(f"no test image of '{dataset.name}' has a label: there is no score")
        error = bootstrap_error(
            dataset.metric, truth, outputs, seed=seed, resamples=parameters.resamples
        )
        clock.lap("test")
        return Outcome(
            metric=dataset.metric,
            value=value,
            standard_error=error,
            n=len(truth),
            details={
                "dimension": int(features.shape[1]),
                "train": len(train),
                "validation": len(validation),
                "weight_decay": decays[best],
                "chosen": best,
                "on_edge": len(decays) > 1 and best in (0, len(decays) - 1),
                "weight_decays": decays,
                "validation_curve": [None if np.isnan(v) else v for v in curve],
                "sweep": _told(path.points),
                "refit": {key: values[0] for key, values in _told((final,)).items()},
                "converged": all(point.converged for point in (*path.points, final)),
            },
            predictions=predictions(outputs) if dataset.task == "multiclass" else outputs,
            cost=clock.seconds,
        )


def validation_curve(path: Path, features: Array, labels: Array, metric: Metric) -> list[float]:
    """Return the metric of each point of a path on validation features (N, D)."""
    from transferbench.measures.metrics import score

    return [score(metric, labels, point.scores(features)) for point in path.points]


def select(curve: list[float]) -> int:
    """Return the first position of the best value: ties go to the weakest penalty.

    Values that are not a number (no validation image has a label) never win; if nothing does, the
    first position is taken.
    """
    return int(np.argmax([-np.inf if np.isnan(value) else value for value in curve]))


def _fit(
    features: Array,
    labels: Array,
    decays: list[float],
    dataset: Dataset,
    tol: float,
    device: str,
    progress: Progress,
    title: str,
) -> Path:
    from transferbench.protocols.logistic import fit_path

    task: Task = dataset.task
    try:
        with progress.task(f"{title} on {dataset.name}", len(decays), "penalties") as bar:
            return fit_path(
                features,
                labels,
                decays,
                task=task,
                classes=dataset.num_classes,
                tol=tol,
                device=device,
                on_point=lambda index, point: bar.advance(),
            )
    except UserError as error:
        raise UserError(f"'{dataset.name}': {error}") from error


def _told(points: tuple[Point, ...]) -> dict[str, list[Any]]:
    return {
        "iterations": [point.iterations for point in points],
        "gradient_norm": [point.gradient_norm for point in points],
        "relative_gap": [point.relative_gap for point in points],
        "objective": [point.objective for point in points],
        "converged": [point.converged for point in points],
    }
