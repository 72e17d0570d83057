"""Per-image test predictions, kept in the cache under the digest that their record names."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from transferbench.storage import cache_folder, digest, write_atomic

if TYPE_CHECKING:
    import numpy as np

    from transferbench.protocols.protocol import Outcome


def keep_predictions(outcome: Outcome) -> str | None:
    """Keep per-image test predictions in the cache and return their digest.

    The file is `predictions/<digest>.npy`; equal predictions are kept once. One that is damaged is
    written anew.
    """
    if outcome.predictions is None:
        return None
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, outcome.predictions, allow_pickle=False)
    name = digest(buffer.getvalue())
    path = cache_folder("predictions") / f"{name}.npy"
    if kept_predictions(name) is None:
        write_atomic(path, buffer.getvalue())
    return name


def kept_predictions(name: str) -> np.ndarray[Any, Any] | None:
    """Return the predictions of a digest; None if the cache has not exactly these."""
    import numpy as np

    # The name comes from a record, which may be anyone's.
    if len(name) != 64 or not name.isalnum():
        return None
    try:
        data = (cache_folder("predictions") / f"{name}.npy").read_bytes()
    except OSError:
        return None
    if digest(data) != name:
        return None
    found: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return found
