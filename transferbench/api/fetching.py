"""Data sets from the Hub: a step of its own, never a side effect of naming a set."""

from __future__ import annotations

from pathlib import Path

from transferbench.api.machine import find_root
from transferbench.errors import UserError


def fetch(name: str, *, data_root: str | Path | None = None) -> str:
    """Fetch a data set's copy from the Hub into its cache and return what was done, a sentence.

    Parameters
    ----------
    name : str
        A name of the catalogue, or of a folder whose `dataset.toml` has a `[hub]` table.

    Raises
    ------
    UserError
        If there is no such set or no copy of it, the Hub cannot be reached, or a download is
        damaged; nothing counts as fetched then.
    """
    from transferbench.data import hub
    from transferbench.data.sources import find_source

    source = find_source(name, data_root=find_root(data_root))
    copy = source.card.hub
    if copy is None:
        how = getattr(source, "how", "")
        told = f"; to get it: {how}" if how else ", and none is needed"
        raise UserError(f"the data set '{source.name}' has no copy on the Hub to fetch{told}")
    new = hub.fetch(copy)
    place = f"{copy.path} at {copy.revision[:12]}"
    return f"{source.name}: fetched {place}" if new else f"{source.name}: {place} is at hand"
