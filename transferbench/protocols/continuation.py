"""In which order a path of penalties is solved, and where each search starts.

The solution is a smooth function of ln wd. So every second penalty is solved, from the strongest to
the weakest, each from a line through the two before; then those between, from a curve through the
solutions around them: that is mostly within the tolerance as it stands, and the certificate says
so. Where penalties are far apart, each is solved from the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 10.0
"""Ratio of two penalties up to which a curve is drawn between their solutions."""

NODES = 6
"""Solutions that such a curve goes through."""


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


def before(decays: Sequence[float], first: Sequence[int], place: int) -> list[int]:
    """Return the two places of `first` before one to draw a line through; none if far apart."""
    at = first.index(place)
    if at < 2 or decays[first[at - 2]] / decays[place] > NEAR**2:
        return []
    return list(first[at - 2 : at])


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


def curve(
    decays: Sequence[float],
    places: Sequence[int],
    solutions: Mapping[int, tuple[Tensor, Tensor]],
    place: int,
) -> tuple[Tensor, Tensor]:
    """Return (W, b) at a place of the polynomial in ln wd through solved ones (Lagrange's form)."""
    at = {i: log(decays[i]) for i in (*places, place)}
    shares = [prod((at[place] - at[j]) / (at[i] - at[j]) for j in places if j != i) for i in places]
    w, b = (
        sum(share * solutions[i][part] for share, i in zip(shares, places, strict=True))
        for part in (0, 1)
    )
    return w, b  # type: ignore[return-value]
