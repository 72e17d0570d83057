"""The penalties of a data set, solved one by one, to the optimum or as the paper's code did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from transferbench.errors import UserError
from transferbench.progress import Progress

if TYPE_CHECKING:
    from transferbench.data.dataset import Dataset
    from transferbench.measures.metrics import Array
    from transferbench.protocols.kept import KeptPoints
    from transferbench.protocols.newton import Point

Mode = Literal["converged", "paper"]


@dataclass(frozen=True)
class Solver:
    """How the problems of one evaluation are solved.

    Attributes
    ----------
    mode : {"converged", "paper"}
    tol : float
        Largest relative duality gap of a converged solution.
    """

    dataset: Dataset
    mode: Mode
    tol: float
    device: str
    progress: Progress

    def solve(
        self,
        features: Array,
        labels: Array,
        decays: Sequence[float],
        *,
        kept: KeptPoints,
        title: str,
        start: Point | None = None,
    ) -> tuple[Point, ...]:
        """Return the solution of each penalty, and keep each as soon as it is there.

        Parameters
        ----------
        features : array (N, D)
        labels : array (N,), or (N, K) for multilabel
        decays : sequence of float
            For mode paper in the order in which each starts from the one before.
        kept : KeptPoints
            What is there is not solved again.
        title : str
            For the progress bar.
        start : Point, optional
            Mode paper: where the first penalty starts; without it at zeros.

        Raises
        ------
        UserError
            If nothing can be learned from the labels, with the data set's name.
        """
        solve = self._stopped if self.mode == "paper" else self._converged
        try:
            return solve(features, labels, decays, kept, f"{title} on {self.dataset.name}", start)
        except UserError as error:
            raise UserError(f"'{self.dataset.name}': {error}") from error

    def excess(
        self, points: Sequence[Point], features: Array, labels: Array, *, kept: KeptPoints
    ) -> list[float]:
        """Return how far above the optimum mode paper stopped: (J - min J) / min J each.

        min J is solved to `tol`.
        """
        # Two rows a label halve the penalty (arXiv 2011.13377's code, see `lbfgs`).
        share = 0.5 if self.dataset.task == "multilabel" else 1.0
        decays = [share * point.weight_decay for point in points]
        title = f"optimum on {self.dataset.name}"
        best = self._converged(features, labels, decays, kept, title, None)
        return [
            (point.objective - optimum.objective) / optimum.objective
            for point, optimum in zip(points, best, strict=True)
        ]

    def _converged(
        self,
        features: Array,
        labels: Array,
        decays: Sequence[float],
        kept: KeptPoints,
        title: str,
        start: Point | None,
    ) -> tuple[Point, ...]:
        from transferbench.protocols.logistic import fit_path

        found = {i: point for i in range(len(decays)) if (point := kept.read(i)) is not None}
        wanted = [i for i in range(len(decays)) if i not in found]
        with self.progress.task(title, len(decays), "penalties") as bar:
            bar.advance(len(found))

            def keep(place: int, point: Point) -> None:
                found[wanted[place]] = point
                kept.write(wanted[place], point)
                bar.advance()

            if wanted:
                fit_path(
                    features,
                    labels,
                    [decays[i] for i in wanted],
                    task=self.dataset.task,
                    classes=self.dataset.num_classes,
                    tol=self.tol,
                    device=self.device,
                    on_point=keep,
                )
        return tuple(found[i] for i in range(len(decays)))

    def _stopped(
        self,
        features: Array,
        labels: Array,
        decays: Sequence[float],
        kept: KeptPoints,
        title: str,
        start: Point | None,
    ) -> tuple[Point, ...]:
        from transferbench.protocols.lbfgs import stopped_path

        points: list[Point] = []
        while len(points) < len(decays) and (there := kept.read(len(points))) is not None:
            points.append(there)
        with self.progress.task(title, len(decays), "penalties") as bar:
            bar.advance(len(points))
            rest = stopped_path(
                features,
                labels,
                decays[len(points) :],
                task=self.dataset.task,
                classes=self.dataset.num_classes,
                start=points[-1] if points else start,
                device=self.device,
            )
            for point in rest:
                kept.write(len(points), point)
                points.append(point)
                bar.advance()
        return tuple(points)


def told(points: Sequence[Point], excess: Sequence[float] | None = None) -> dict[str, list[Any]]:
    """Return what a record tells of each solution.

    With `excess`, that stands in the place of the certified gap, which only the optimum has.
    """
    how_far: dict[str, list[Any]] = (
        {"relative_gap": [point.relative_gap for point in points]}
        if excess is None
        else {"relative_excess": list(excess)}
    )
    return {
        "iterations": [point.iterations for point in points],
        "gradient_norm": [point.gradient_norm for point in points],
        **how_far,
        "objective": [point.objective for point in points],
        "converged": [point.converged for point in points],
    }
