"""Few-shot episodes: nearest class mean, and the interval over episodes (arXiv 2011.13377, A.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transferbench.measures.metrics import Array, Floats


@dataclass(frozen=True)
class Episode:
    """What nearest class means make of an episode's queries.

    Attributes
    ----------
    accuracy : float
        Share of correct queries.
    loss : float
        Mean of -log softmax(-distance) at the true class.
    distances : array (Q, W)
        Squared Euclidean distances to the class means.
    """

    accuracy: float
    loss: float
    distances: Floats


def nearest_mean(
    support: Array, support_labels: Array, queries: Array, query_labels: Array
) -> Episode:
    """Classify queries by the nearest mean of their W classes, on raw features.

    Parameters
    ----------
    support : array (S, D)
    support_labels : array (S,) of 0..W-1
    queries : array (Q, D)
    query_labels : array (Q,)
    """
    support = np.asarray(support, dtype=np.float64)
    queries = np.asarray(queries, dtype=np.float64)
    support_labels, query_labels = np.asarray(support_labels), np.asarray(query_labels)
    members = np.eye(int(support_labels.max()) + 1)[support_labels]
    means = members.T @ support / members.sum(axis=0)[:, None]
    distances = ((queries[:, None, :] - means[None, :, :]) ** 2).sum(axis=2)
    own = np.take_along_axis(distances, query_labels[:, None], axis=1)[:, 0]
    nearest = distances.min(axis=1)
    spread = np.exp(nearest[:, None] - distances).sum(axis=1)
    return Episode(
        accuracy=float(np.mean(distances.argmin(axis=1) == query_labels)),
        loss=float(np.mean(own - nearest + np.log(spread))),
        distances=distances,
    )


def interval(accuracies: Array, *, ddof: int = 0) -> tuple[float, float]:
    """Return mean and 95 % half width, 1.96 std / sqrt(E), of accuracies (E,) in their own unit.

    The divisor of the variance is E - `ddof`; the paper's is E.
    """
    accuracies = np.asarray(accuracies, dtype=np.float64)
    half = 1.96 * accuracies.std(ddof=ddof) / np.sqrt(len(accuracies))
    return float(accuracies.mean()), float(half)
