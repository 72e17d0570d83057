"""k nearest neighbours by cosine similarity, with exact and repeatable ties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transferbench.measures.metrics import Array, Floats

CHUNK = 4_000_000  # similarities held at once
ROWS = 1024  # scaled to unit length at once


def nearest_neighbors(queries: Array, bank: Array, k: int) -> tuple[NDArray[np.int64], Floats]:
    """Find the `k` rows of the bank with the largest cosine similarity to each query.

    Parameters
    ----------
    queries : array (Q, D)
    bank : array (N, D)
    k : int
        At most N are found.

    Returns
    -------
    indices : array (Q, k) int64
        Most similar first; equal similarities by ascending bank index.
    similarities : array (Q, k) float64
    """
    bank, queries = unit_rows(bank), unit_rows(queries)
    k = min(k, len(bank))
    indices = np.empty((len(queries), k), dtype=np.int64)
    similarities = np.empty((len(queries), k))
    step = max(1, CHUNK // len(bank))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        found = queries[part] @ bank.T
        indices[part] = _largest(found, k)
        similarities[part] = np.take_along_axis(found, indices[part], axis=1)
    return indices, similarities


def vote(
    indices: Array,
    similarities: Array,
    labels: Array,
    *,
    temperature: float,
    classes: int,
    relative: bool = False,
) -> Floats:
    """Return class scores (Q, K): each neighbour adds exp(similarity / T) to its class.

    Weighted vote of arXiv 1805.01978, section 3.4.

    Parameters
    ----------
    indices, similarities : arrays (Q, k)
        From `nearest_neighbors`.
    labels : array (N,)
        Classes of the bank.
    temperature : float
        T.
    classes : int
        K.
    relative : bool
        Divide the scores of a query by the weight of its nearest neighbour: the order of the
        classes is the same, and no temperature overflows.
    """
    similarities = np.asarray(similarities)
    if relative:
        similarities = similarities - similarities.max(axis=1, keepdims=True)
    # Of the relative weights, those of farther neighbours may vanish.
    with np.errstate(over="ignore" if relative else "warn"):
        weights = np.exp(similarities / temperature)
    queries = np.arange(len(weights))[:, None]
    cells = queries * classes + np.asarray(labels)[np.asarray(indices)]
    total = np.zeros(len(weights) * classes)
    total += np.bincount(cells.ravel(), weights=weights.ravel(), minlength=len(total))
    return total.reshape(len(weights), classes)


def knn_scores(
    queries: Array,
    bank: Array,
    labels: Array,
    *,
    ks: Sequence[int],
    temperature: float,
    classes: int,
    relative: bool = False,
) -> list[Floats]:
    """Return the class scores (Q, K) for each k of `ks`, from one search.

    Parameters
    ----------
    queries : array (Q, D)
    bank : array (N, D)
    labels : array (N,)
        Classes of the bank.
    ks : sequence of int
        A k above N is N.
    temperature, classes, relative
        As for `vote`.
    """
    indices, similarities = nearest_neighbors(queries, bank, max(ks))
    return [
        vote(
            indices[:, :k],
            similarities[:, :k],
            labels,
            temperature=temperature,
            classes=classes,
            relative=relative,
        )
        for k in ks
    ]


def unit_rows(features: Array) -> Floats:
    """Scale rows (N, D) to length one in float64; rows of zeros stay."""
    unit = np.empty(features.shape)
    # A part at a time: the rows of a large bank are held once, not three times.
    for start in range(0, len(unit), ROWS):
        rows = np.asarray(features[start : start + ROWS], dtype=np.float64)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        unit[start : start + ROWS] = rows / np.where(length > 0, length, 1.0)
    return unit


def _largest(values: Floats, k: int) -> NDArray[np.int64]:
    """Return the columns (R, k) of the largest values of each row, ties by ascending column."""
    count = values.shape[1]
    if k >= count:
        return np.asarray(np.argsort(-values, axis=1, kind="stable"), dtype=np.int64)
    chosen = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)
    kept = np.take_along_axis(values, chosen, axis=1)
    chosen = np.take_along_axis(chosen, np.argsort(-kept, axis=1, kind="stable"), axis=1)
    # Where a value equal to the smallest kept one was left out, the partition chose at will.
    least = kept.min(axis=1, keepdims=True)
    tied = np.flatnonzero((values >= least).sum(axis=1) > k)
    for row in tied:
        chosen[row] = np.argsort(-values[row], kind="stable")[:k]
    return chosen
