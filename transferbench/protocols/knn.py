"""Weighted k-nearest-neighbour vote on frozen features (arXiv 1805.01978, section 3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from transferbench.progress import SILENT, Progress
from transferbench.protocols.clock import Clock
from transferbench.protocols.protocol import Outcome, Parameters

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Card, Dataset


class KNNParameters(Parameters):
    """What may be chosen about the vote; nothing is chosen on the test images.

    Attributes
    ----------
    k : int
        Neighbours that vote; at most as many as there are training images.
    temperature : float
        T of the weight exp(similarity / T).
    also : tuple of int
        Further k whose values and errors stand beside in the details; the grid of
        facebookresearch/dino, with the 200 of the source.
    resamples : int
        Bootstrap resamples of the test images for the standard error.
    """

    k: int = Field(default=20, ge=1)
    temperature: float = Field(default=0.07, gt=0)
    also: tuple[Annotated[int, Field(ge=1)], ...] = (1, 10, 100, 200)
    resamples: int = Field(default=1000, ge=2)


class KNN:
    """The bank is train + val; similarity is the cosine; ties go to the lower index."""

    name: ClassVar[str] = "knn"
    version: ClassVar[int] = 2
    Parameters: ClassVar[type[Parameters]] = KNNParameters

    def applies_to(self, card: Card) -> bool:
        """Return whether images have one label each; a vote on several is not defined."""
        return card.task == "multiclass"

    def run(
        self,
        backbone: Backbone,
        dataset: Dataset,
        parameters: KNNParameters,
        *,
        seed: int,
        device: str,
        progress: Progress = SILENT,
    ) -> Outcome:
        """Evaluate; `seed` is that of the bootstrap, for nothing else is left to chance."""
        from transferbench.measures.metrics import predictions, score
        from transferbench.measures.neighbors import knn_scores
        from transferbench.measures.uncertainty import bootstrap_error
        from transferbench.protocols.features import gather

        clock = Clock()
        bank, labels = gather(backbone, dataset, ("train", "val"), device=device, progress=progress)
        clock.lap("features")
        test, truth = gather(backbone, dataset, ("test",), device=device, progress=progress)
        clock.lap("test")
        ks = [parameters.k, *(k for k in parameters.also if k != parameters.k)]
        scores = knn_scores(
            test,
            bank,
            labels,
            ks=ks,
            temperature=parameters.temperature,
            classes=dataset.num_classes,
            relative=True,
        )
        by_k = {
            str(k): {
                "value": score(dataset.metric, truth, votes),
                "standard_error": bootstrap_error(
                    dataset.metric, truth, votes, seed=seed, resamples=parameters.resamples
                ),
            }
            for k, votes in sorted(zip(ks, scores, strict=True), key=lambda pair: pair[0])
        }
        clock.lap("vote")
        return Outcome(
            metric=dataset.metric,
            **by_k[str(parameters.k)],
            n=len(truth),
            details={
                "dimension": int(bank.shape[1]),
                "bank": len(bank),
                "k": parameters.k,
                "temperature": parameters.temperature,
                "by_k": by_k,
            },
            predictions=predictions(scores[0]),
            cost=clock.seconds,
        )
