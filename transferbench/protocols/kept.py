"""Solutions kept in the cache until the number that they lead to is there."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from transferbench.protocols.newton import Point
from transferbench.storage import cache_folder, digest, write_atomic

ARRAYS = ("weights", "intercepts")


class KeptPoints:
    """The solved penalties of one sweep, so that a killed evaluation goes on where it was.

    Parameters
    ----------
    key : JSON value or None
        Everything that decides the solutions. None keeps nothing: for features that no digest
        identifies.

    Notes
    -----
    All sweeps are files of one folder, which stays: another process with the same sweep may be
    writing while this one forgets it.
    """

    def __init__(self, key: Any) -> None:
        self._name = None if key is None else digest(key)[:32]

    def read(self, index: int) -> Point | None:
        """Return what was kept for a penalty's place; None if that is nothing or damaged."""
        if self._name is None:
            return None
        try:
            with np.load(self._path(index), allow_pickle=False) as file:
                weights, intercepts = (np.asarray(file[name], np.float64) for name in ARRAYS)
                told = json.loads(str(file["told"]))
                point = Point(weights=weights, intercepts=intercepts, **told)
        # A damaged file meets many kinds of exception, in the archive, the arrays and the text.
        except Exception:
            return None
        sound = np.isfinite(weights).all() and weights.shape[:1] == intercepts.shape
        return point if sound else None

    def write(self, index: int, point: Point) -> None:
        """Keep a solution."""
        if self._name is None:
            return
        told = {name: value for name, value in vars(point).items() if name not in ARRAYS}
        arrays = {name: getattr(point, name) for name in ARRAYS}
        text = np.array(json.dumps(told))
        write_atomic(self._path(index), lambda file: np.savez(file, told=text, **arrays))

    def clear(self) -> None:
        """Forget the sweep."""
        if self._name is not None:
            for path in cache_folder("sweeps").glob(f"{self._name}-*.npz"):
                with suppress(OSError):
                    path.unlink()

    def _path(self, index: int) -> Path:
        return cache_folder("sweeps") / f"{self._name}-{index}.npz"
