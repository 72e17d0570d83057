"""Few-shot episodes: nearest class mean on frozen features (arXiv 2011.13377, section 4.2, A.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from transferbench.errors import UserError
from transferbench.progress import SILENT, Progress
from transferbench.protocols.clock import Clock
from transferbench.protocols.protocol import Outcome, Parameters

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Card, Dataset
    from transferbench.measures.metrics import Array, Floats
    from transferbench.protocols.features import View

SQUASHED = 1.15
"""The code's side before the centre cut, per side of the input: 257 for 224."""


class FewShotParameters(Parameters):
    """What may be chosen about the episodes.

    Attributes
    ----------
    mode : {"text", "paper"}
        Where the paper's text and code differ in how an image is shown: "text" as for `linear`,
        from the same features; "paper" as the code, which squashes the image to 1.15 times the
        input size with the bilinear filter and cuts out the centre.
    ways : int
        Classes of an episode.
    shots : int
        Images of a class that make its mean.
    also : tuple of int
        Further shots whose accuracies stand in the details; None there where a class has too few
        images.
    queries : int
        Images of a class that are classified.
    episodes : int
    """

    mode: Literal["text", "paper"] = "text"
    ways: int = Field(default=5, ge=2)
    shots: int = Field(default=5, ge=1)
    also: tuple[Annotated[int, Field(ge=1)], ...] = (20, 50)
    queries: int = Field(default=15, ge=1)
    episodes: int = Field(default=600, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _alone_unless_asked(cls, values: Any) -> Any:
        # Who asks for other shots asks for these.
        if isinstance(values, dict) and "shots" in values and "also" not in values:
            return {**values, "also": ()}
        return values

    def suit(self, card: Card) -> bool:
        """Return False where the card tells of too few classes, or images of one, for `shots`."""
        return card.classes >= self.ways and _at_most(card) >= self.shots + self.queries


class FewShot:
    """Classify queries by the nearest mean of raw features; images of all splits take part."""

    name: ClassVar[str] = "fewshot"
    version: ClassVar[int] = 1
    Parameters: ClassVar[type[Parameters]] = FewShotParameters

    def applies_to(self, card: Card) -> bool:
        """Return whether images have one label each."""
        return card.task == "multiclass"

    def run(
        self,
        backbone: Backbone,
        dataset: Dataset,
        parameters: FewShotParameters,
        *,
        seed: int,
        device: str,
        progress: Progress = SILENT,
    ) -> Outcome:
        """Evaluate; `seed` draws the episodes, the same for every backbone.

        The standard error is over episodes: they share images, so that it understates what other
        images would change.
        """
        from transferbench.measures.episodes import interval
        from transferbench.protocols.features import PLAIN, gather

        clock = Clock()
        view = squashed_view() if parameters.mode == "paper" else PLAIN
        features, labels = gather(
            backbone,
            dataset,
            ("train", "val", "test"),
            view=view,
            device=device,
            progress=progress,
        )
        clock.lap("features")
        fewest = _fewest(dataset, labels, parameters)
        wanted = [parameters.shots, *(s for s in parameters.also if s != parameters.shots)]
        by_shots: dict[str, dict[str, float] | None] = {}
        accuracies: dict[int, Floats] = {}
        with progress.task(f"episodes of {dataset.name}", len(wanted), "shots") as bar:
            for shots in wanted:
                by_shots[str(shots)] = None
                if shots + parameters.queries <= fewest:
                    found = episode_accuracies(features, labels, parameters, shots=shots, seed=seed)
                    mean, half = interval(found)
                    accuracies[shots] = found
                    by_shots[str(shots)] = {"value": mean, "interval_95": half}
                bar.advance()
        mean, half = interval(accuracies[parameters.shots])
        clock.lap("episodes")
        return Outcome(
            metric="top1",
            value=mean,
            standard_error=half / 1.96,
            n=len(labels),
            details={
                "mode": parameters.mode,
                "dimension": int(features.shape[1]),
                "images": len(features),
                "fewest_images_of_a_class": fewest,
                "interval_95": half,
                "errors_over": "episodes",
                "by_shots": by_shots,
            },
            predictions=accuracies[parameters.shots],
            cost=clock.seconds,
        )


def episode_accuracies(
    features: Array, labels: Array, parameters: FewShotParameters, *, shots: int, seed: int
) -> Floats:
    """Return the accuracy of each episode (E,).

    An episode's classes are the first of a permutation of all. Of each class `shots` + queries
    images are drawn, and one permutation, the same for all its classes, parts them into those that
    make the mean and those that are classified (linusericsson/ssl-transfer: few_shot_dataset.py).

    Parameters
    ----------
    features : array (N, D)
    labels : array (N,)
        Every class that occurs has at least `shots` + queries images.
    parameters : FewShotParameters
    shots, seed : int
    """
    from transferbench.measures.episodes import nearest_mean

    state = np.random.RandomState([seed % 2**32, shots])
    pools = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    size, ways = shots + parameters.queries, parameters.ways
    width = features.shape[1]
    found = np.empty(parameters.episodes)
    for episode in range(parameters.episodes):
        classes = state.permutation(len(pools))[:ways]
        drawn = np.stack([state.choice(pools[k], size, replace=False) for k in classes])
        drawn = drawn[:, state.permutation(size)]
        # One access in ascending order: features may lie on disk.
        order = np.argsort(drawn, axis=None)
        taken = np.empty((ways * size, width))
        taken[order] = features[drawn.ravel()[order]]
        by_class = taken.reshape(ways, size, width)
        found[episode] = nearest_mean(
            by_class[:, :shots].reshape(-1, width),
            np.repeat(np.arange(ways), shots),
            by_class[:, shots:].reshape(-1, width),
            np.repeat(np.arange(ways), parameters.queries),
        ).accuracy
    return found


def squashed_view() -> View:
    """Return the view of the paper's few-shot code: squash, then cut out the centre."""
    from transferbench.protocols.features import View

    def pixels(split: Any, backbone: Backbone, progress: Progress) -> Any:
        from transferbench.data.images import whole_pixels

        size = backbone.input_size
        whole, _ = whole_pixels(
            split, int(size * SQUASHED), interpolation="bilinear", progress=progress
        )
        start = round((whole.shape[1] - size) / 2)
        return whole[:, start : start + size, start : start + size]

    return View("squashed", pixels, lambda backbone, images, start: backbone.normalize(images))


def _fewest(dataset: Dataset, labels: Array, parameters: FewShotParameters) -> int:
    """Return the number of images of the smallest class.

    Raises
    ------
    UserError
        If it, or the number of classes, is too small for any episode.
    """
    counts = np.bincount(labels, minlength=dataset.num_classes)
    present = np.flatnonzero(counts)
    if len(present) < parameters.ways:
        raise UserError(
            f"'{dataset.name}' has images of {len(present)} classes, but an episode needs "
            f"{parameters.ways}; lower 'ways'"
        )
    smallest = present[counts[present].argmin()]
    needed = parameters.shots + parameters.queries
    if counts[smallest] < needed:
        raise UserError(
            f"{parameters.shots} shots and {parameters.queries} queries need {needed} images a "
            f"class, but '{dataset.classes[smallest]}' of '{dataset.name}' has "
            f"{counts[smallest]}; lower 'shots' or 'queries'"
        )
    return int(counts[smallest])


def _at_most(card: Card) -> float:
    """Return how many images the smallest class has at most, as far as a card tells."""
    splits = set(card.counts)
    if splits and splits <= set(card.label_histogram or ()):
        histograms = [card.label_histogram[split] for split in splits]  # type: ignore[index]
        return min(map(sum, zip(*histograms, strict=True)))
    limits = card.images_per_class or {}
    if not splits or not splits <= set(limits):
        return float("inf")
    most = sum(limits[split].max for split in splits)
    return min(most - limits[split].max + limits[split].min for split in splits)
