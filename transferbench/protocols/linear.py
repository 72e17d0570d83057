"""Linear evaluation: multinomial logistic regression on frozen features (arXiv 2011.13377, A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from transferbench.errors import UserError
from transferbench.progress import SILENT, Progress
from transferbench.protocols.clock import Clock
from transferbench.protocols.labels import LabelledParameters
from transferbench.protocols.protocol import Outcome, Parameters
from transferbench.protocols.sweep import Mode, Solver, told

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Card, Dataset
    from transferbench.measures.metrics import Array, Form, Metric
    from transferbench.protocols.logistic import Path

BINS = 15


class LinearParameters(LabelledParameters):
    """What may be chosen about linear evaluation.

    Attributes
    ----------
    mode : {"converged", "paper"}
        "converged": every penalty solved to `tol`. "paper": as the published numbers were made:
        L-BFGS stopped early (see `lbfgs`), penalties in float32, two rows a label and the code's
        average precision for multilabel sets, calibration on fifths of the test set.
    start, stop, count
        The weight decays tried: `count` values from 10**start to 10**stop, equal in ratio.
    tol : float
        Largest relative duality gap at which a solution counts as one.
    resamples : int
        Bootstrap resamples of the test images for the standard error.
    """

    mode: Mode = "converged"
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
    version: ClassVar[int] = 3
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
        """Evaluate; `seed` is that of the bootstrap, and of which images have labels."""
        from transferbench.data.splits import training_split
        from transferbench.measures.metrics import predictions, score
        from transferbench.measures.uncertainty import bootstrap_error
        from transferbench.protocols.features import gather
        from transferbench.protocols.grids import weight_decays
        from transferbench.protocols.kept import KeptPoints
        from transferbench.protocols.logistic import Path

        clock = Clock()
        features, labels = gather(
            backbone, dataset, ("train", "val"), device=device, progress=progress
        )
        train, validation = training_split(dataset, parameters.labels, seed=seed)
        clock.lap("features")

        paper = parameters.mode == "paper"
        solver = Solver(dataset, parameters.mode, parameters.tol, device, progress)
        decays = weight_decays(parameters.start, parameters.stop, parameters.count)
        if paper:
            decays = [float(np.float32(decay)) for decay in decays]
        form: Form = "code" if paper else "devkit"
        key = [self.version, backbone.digest, dataset.fingerprint, parameters.model_dump(), seed]
        kept = [
            KeptPoints([*key, part] if backbone.cacheable else None)
            for part in ("sweep", "refit", "sweep optimum", "refit optimum")
        ]

        x, y = features[train], labels[train]
        points = solver.solve(x, y, decays, kept=kept[0], title="sweep")
        path = Path(points)
        curve = validation_curve(
            path, features[validation], labels[validation], dataset.metric, form=form
        )
        best = select(curve)
        clock.lap("sweep")
        # The code's one estimator goes on from the end of the sweep; a C given alone from zeros.
        start = points[-1] if paper and len(decays) > 1 else None
        if parameters.labels is not None:
            both = np.concatenate([train, validation])
            whole, targets = features[both], labels[both]
        else:
            whole, targets = features, labels
        (final,) = solver.solve(
            whole, targets, [decays[best]], kept=kept[1], title="refit", start=start
        )
        clock.lap("refit")
        excess: list[list[float] | None] = [None, None]
        if paper:
            excess = [
                solver.excess(points, x, y, kept=kept[2]),
                solver.excess([final], whole, targets, kept=kept[3]),
            ]
            clock.lap("optimum")

        test, truth = gather(backbone, dataset, ("test",), device=device, progress=progress)
        outputs = final.scores(test)
        value = score(dataset.metric, truth, outputs, form=form)
        if np.isnan(value):
            raise UserError(f"no test image of '{dataset.name}' has a label: there is no score")
        error = bootstrap_error(
            dataset.metric, truth, outputs, seed=seed, resamples=parameters.resamples, form=form
        )
        details: dict[str, Any] = {
            "mode": parameters.mode,
            "dimension": int(features.shape[1]),
            "train": len(train),
            "validation": len(validation),
            "weight_decay": decays[best],
            "chosen": best,
            "on_edge": len(decays) > 1 and best in (0, len(decays) - 1),
            "weight_decays": decays,
            "validation_curve": [None if np.isnan(v) else v for v in curve],
            "sweep": told(points, excess[0]),
            "refit": {key: values[0] for key, values in told([final], excess[1]).items()},
            "converged": all(point.converged for point in (*points, final)),
        }
        if dataset.task == "multiclass":
            details["calibration"] = (
                calibration_on_test(outputs, truth)
                if paper
                else calibration(
                    points[best].scores(features[validation]), labels[validation], outputs, truth
                )
            )
        clock.lap("test")
        for each in kept:
            each.clear()
        return Outcome(
            metric=dataset.metric,
            value=value,
            standard_error=error,
            n=len(truth),
            details=details,
            predictions=predictions(outputs) if dataset.task == "multiclass" else outputs,
            cost=clock.seconds,
        )


def calibration(
    validation_scores: Array, validation_labels: Array, scores: Array, labels: Array
) -> dict[str, Any]:
    """Return the calibration error before and after scaling by a temperature of the validation.

    Parameters
    ----------
    validation_scores, validation_labels : arrays (V, K), (V,)
        Of the model fitted without validation images.
    scores, labels : arrays (N, K), (N,)
        Of the final model on test.

    Returns
    -------
    dict
        "ece" and "ece_scaled" are shares over "bins" equal bins closed on the right. A
        "temperature" of None is infinite: the scores told nothing.
    """
    from transferbench.measures.calibration import fit_temperature, logits_error

    temperature = fit_temperature(validation_scores, validation_labels)
    return {
        "bins": BINS,
        "fitted_on": "validation",
        "ece": logits_error(scores, labels, bins=BINS),
        "ece_scaled": logits_error(scores / temperature, labels, bins=BINS),
        "temperature": temperature if np.isfinite(temperature) else None,
    }


def calibration_on_test(scores: Array, labels: Array) -> dict[str, Any] | None:
    """Return the calibration error by the paper's rule, which reads test labels.

    Each fifth of the test set gives a temperature, and the other four the error after scaling;
    bins are closed on the left. None for fewer than five images.
    """
    from transferbench.measures.calibration import five_fold

    if len(labels) < 5:
        return None
    found = five_fold(scores, labels, bins=BINS)
    return {
        "bins": BINS,
        "fitted_on": "fifths of test",
        "ece": found.unscaled,
        "ece_scaled": found.scaled,
        "temperatures": [t if np.isfinite(t) else None for t in found.temperatures],
    }


def validation_curve(
    path: Path, features: Array, labels: Array, metric: Metric, *, form: Form = "devkit"
) -> list[float]:
    """Return the metric of each point of a path on validation features (N, D)."""
    from transferbench.measures.metrics import score

    return [score(metric, labels, point.scores(features), form=form) for point in path.points]


def select(curve: Sequence[float]) -> int:
    """Return the first position of the best value: ties go to the weakest penalty.

    Values that are not a number (no validation image has a label) never win; if nothing does, the
    first position is taken.
    """
    return int(np.argmax([-np.inf if np.isnan(value) else value for value in curve]))
