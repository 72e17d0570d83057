"""Which training images serve for validation, and which of them have labels at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transferbench.errors import UserError

if TYPE_CHECKING:
    from transferbench.data.dataset import Dataset

Positions = npt.NDArray[np.int64]
Labels = int | float | None
"""How many training images have labels: a count, a share of all, or (None) every one."""


def random_fifth(n: int, *, seed: int = 0) -> tuple[Positions, Positions]:
    """Split 0..n-1 by the rule of the transfer paper's code (arXiv 2011.13377, linear.py).

    The positions are shuffled by NumPy's legacy generator; the first floor(0.2 n) are for
    validation. Not stratified.

    Returns
    -------
    train, validation : int64 arrays
        Positions in shuffled order.
    """
    order: list[Any] = list(range(n))
    np.random.RandomState(seed).shuffle(order)
    cut = int(np.floor(0.2 * n))
    return np.array(order[cut:], dtype=np.int64), np.array(order[:cut], dtype=np.int64)


def validation_split(dataset: Dataset) -> tuple[Positions, Positions]:
    """Return the positions to train on and those to choose on.

    Returns
    -------
    train, validation : int64 arrays
        Positions into the concatenation of `train` and, where there is one, `val`. A given `val`
        split is the validation set; otherwise it is a random fifth, as the card says.

    Raises
    ------
    UserError
        If a fifth of the images is not even one.
    """
    sizes = [len(dataset.splits[name]) for name in ("train", "val") if name in dataset.splits]
    if dataset.card.validation == "given" and len(sizes) == 2:
        return np.arange(sizes[0]), np.arange(sizes[0], sum(sizes))
    if sum(sizes) < 5:
        raise UserError(
            f"the data set '{dataset.name}' has {sum(sizes)} training images; "
            "a validation fifth needs 5 or more"
        )
    return random_fifth(sum(sizes))


def training_split(dataset: Dataset, labels: Labels, *, seed: int) -> tuple[Positions, Positions]:
    """Return the positions to train on and to choose on where only some images have labels.

    The labelled images are the first of `balanced_order`, so that fewer are always among more.
    Of each class the second, the seventh, the twelfth ... is for validation; a given `val` split is
    labelled as sparsely as `train` is.

    Parameters
    ----------
    dataset : Dataset
    labels : int, float or None
        Labelled images of `train` and `val` together: a count of 2 or more, or a share in (0, 1],
        rounded down. None: `validation_split`.
    seed : int
        Of the order.

    Returns
    -------
    train, validation : int64 arrays
        Positions into the concatenation of `train` and, where there is one, `val`.

    Raises
    ------
    UserError
        If there are fewer images than `labels`, or a class, or the validation set, gets none.
    """
    if labels is None:
        return validation_split(dataset)
    names = [name for name in ("train", "val") if name in dataset.splits]
    every = np.concatenate([dataset.splits[name].labels for name in names])
    # A share such as 0.29 times 100 is a hair below the count that is meant.
    count = labels if isinstance(labels, int) else int(labels * len(every) + 1e-9)
    if count > len(every):
        raise UserError(f"labels = {labels}, but '{dataset.name}' has {len(every)} training images")
    classes = dataset.num_classes
    order, ranks = balanced_order(every, count, classes=classes, seed=seed)
    chosen = ranks % 5 == 1
    train, validation = order[~chosen], order[chosen]
    present = _occurs(every, classes)
    empty = int((present & ~_occurs(every[train], classes)).sum())
    if empty or not len(validation):
        lacking = f"{empty} classes without training images" if empty else "none for validation"
        raise UserError(
            f"labels = {labels} is {count} of the {len(every)} training images of "
            f"'{dataset.name}' and leaves {lacking}; at least {present.sum() + 1} are needed"
        )
    return train, validation


def balanced_order(
    labels: npt.NDArray[Any], count: int, *, classes: int, seed: int
) -> tuple[Positions, Positions]:
    """Draw images so that at any time the classes have had as nearly equal numbers as they allow.

    Parameters
    ----------
    labels : array (N,) of class indices, or (N, K), positive where an image has a label
        Of several labels the rarest so far decides; an image without any counts as of a class of
        its own kind.
    count : int
        How many are drawn; the first of them are those that a smaller count gives.
    classes : int
        K.
    seed : int
        Of `numpy.random.RandomState`, which shuffles the images and the classes.

    Returns
    -------
    positions : array (count,) int64
    ranks : array (count,) int64
        How many were drawn before for the same class.
    """
    state = np.random.RandomState(seed % 2**32)
    shuffled = state.permutation(len(labels))
    turn = state.permutation(classes + 1)
    if labels.ndim == 2:
        members = np.column_stack([labels > 0, ~(labels > 0).any(axis=1)])[:, turn]
        return _rarest_first(members, shuffled, count)
    # The same for one label each: the first of every class, then the second of every class ...
    own = labels[shuffled]
    by_class = np.argsort(own, kind="stable")
    sizes = np.bincount(own, minlength=classes)
    ranks = np.empty(len(own), np.int64)
    ranks[by_class] = np.arange(len(own)) - (np.cumsum(sizes) - sizes)[own[by_class]]
    first = np.lexsort((np.argsort(turn)[own], ranks))[:count]
    return shuffled[first], ranks[first]


def _rarest_first(
    members: npt.NDArray[np.bool_], shuffled: Positions, count: int
) -> tuple[Positions, Positions]:
    """Draw for the class (of C, first where equal) that has had fewest; members (N, C)."""
    waiting = [iter(shuffled[column[shuffled]]) for column in members.T]
    had = np.zeros(len(waiting))
    drawn_for = [0] * len(waiting)
    taken = np.zeros(len(members), bool)
    positions: list[int] = []
    ranks: list[int] = []
    while len(positions) < count:
        k = int(had.argmin())
        image = next((i for i in waiting[k] if not taken[i]), None)
        if image is None:
            had[k] = np.inf
            continue
        taken[image] = True
        positions.append(image)
        ranks.append(drawn_for[k])
        drawn_for[k] += 1
        had += members[image]
    return np.array(positions, np.int64), np.array(ranks, np.int64)


def _occurs(labels: npt.NDArray[Any], classes: int) -> npt.NDArray[np.bool_]:
    """Tell which of the classes (K,) any image has."""
    if labels.ndim == 2:
        return np.asarray((labels > 0).any(axis=0))
    return np.bincount(labels, minlength=classes)[:classes] > 0
