"""Which training images serve for validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transferbench.errors import UserError

if TYPE_CHECKING:
    from transferbench.data.dataset import Dataset

Positions = npt.NDArray[np.int64]


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
