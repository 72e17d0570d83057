"""A protocol: the class whose mean feature is nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from transferbench.progress import SILENT, Progress
from transferbench.protocols.protocol import Outcome, Parameters

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Card, Dataset


class CentroidParameters(Parameters):
    """What may be chosen."""

    resamples: int = Field(default=200, ge=2)


class Centroid:
    """Nearest class mean in Euclidean distance; nothing is chosen on validation."""

    name: ClassVar[str] = "centroid"
    version: ClassVar[int] = 1
    Parameters: ClassVar[type[Parameters]] = CentroidParameters

    def applies_to(self, card: Card) -> bool:
        """Return whether images have one label each."""
        return card.task == "multiclass"

    def run(
        self,
        backbone: Backbone,
        dataset: Dataset,
        parameters: CentroidParameters,
        *,
        seed: int,
        device: str,
        progress: Progress = SILENT,
    ) -> Outcome:
        """Evaluate; the test split is read once."""
        import numpy as np

        from transferbench.measures.metrics import predictions, score
        from transferbench.measures.uncertainty import bootstrap_error
        from transferbench.protocols.features import gather

        features, labels = gather(
            backbone, dataset, ("train", "val"), device=device, progress=progress
        )
        means = np.stack([features[labels == k].mean(axis=0) for k in range(dataset.num_classes)])
        test, truth = gather(backbone, dataset, ("test",), device=device, progress=progress)
        outputs = -((test[:, None] - means) ** 2).sum(axis=2)
        return Outcome(
            metric=dataset.metric,
            value=score(dataset.metric, truth, outputs),
            standard_error=bootstrap_error(
                dataset.metric, truth, outputs, seed=seed, resamples=parameters.resamples
            ),
            n=len(truth),
            predictions=predictions(outputs),
        )
