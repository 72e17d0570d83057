"""In which order a path of penalties is solved, and where each search starts.

The solution is a smooth function of ln wd. So every second penalty is solved, from the strongest to
the weakest, each from a line through the two before; then those between, from a curve through the
solutions around them: that is mostly within the tolerance as it stands, and the certificate says
so. To a penalty far from the one before lead others between, solved loosely, as a search from afar
costs more than all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log, prod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 10.0
"""Ratio of two penalties up to which a curve is drawn between their solutions."""

NODES = 6
"""Solutions that such a curve goes through."""

STEP = 10**0.5
"""Largest ratio of two penalties of which one is solved from the other."""


class Solved(NamedTuple):
    """The solution at one penalty: W (K, R) and b (K,)."""

    decay: float
    w: Tensor
    b: Tensor


def order(decays: Sequence[float]) -> tuple[list[int], list[int]]:
    """Return the places of falling penalties to be solved one after the other, and those between.

    The ratio of the two around one between is at most `NEAR`.
    """
    first, between = [0], []
    for place in range(1, len(decays)):
        last = place == len(decays) - 1
        if last or first[-1] != place - 1 or decays[place - 1] / decays[place + 1] > NEAR:
            first.append(place)
        else:
            between.append(place)
    return first, between


def around(decays: Sequence[float], first: Sequence[int], place: int) -> list[int]:
    """Return up to `NODES` places of `first` nearest to one, without a gap between them."""
    high = next(i for i, other in enumerate(first) if other > place)
    low = high - 1

    def distance(i: int) -> float:
        return abs(log(decays[first[i]] / decays[place]))

    while high - low + 1 < NODES:
        down = low > 0 and decays[first[low - 1]] / decays[first[low]] <= NEAR
        up = high + 1 < len(first) and decays[first[high]] / decays[first[high + 1]] <= NEAR
        if down and (not up or distance(low - 1) <= distance(high + 1)):
            low -= 1
        elif up:
            high += 1
        else:
            break
    return list(first[low : high + 1])


def stones(start: float, decay: float) -> list[float]:
    """Return falling penalties between two, so that no step is longer than `STEP`."""
    count = ceil(log(start / decay) / log(STEP) - 1e-9)
    return [start * (decay / start) ** (i / count) for i in range(1, count)]


def curve(solved: Sequence[Solved], decay: float) -> tuple[Tensor, Tensor]:
    """Return (W, b) at a penalty, of the polynomial in ln wd through solutions at others."""
    at, logs = log(decay), [log(one.decay) for one in solved]
    # Lagrange's form.
    shares = [
        prod((at - other) / (own - other) for j, other in enumerate(logs) if j != i)
        for i, own in enumerate(logs)
    ]
    w, b = shares[0] * solved[0].w, shares[0] * solved[0].b
    for share, one in zip(shares[1:], solved[1:], strict=True):
        w, b = w + share * one.w, b + share * one.b
    return w, b
