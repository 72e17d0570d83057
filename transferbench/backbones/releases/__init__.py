"""Recognisers of published checkpoints, one file per format family."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module

from transferbench.backbones.releases.release import Release, Shapes

VERSION = 2
"""Raised whenever a file would be recognised, or taken apart, in another way."""

# The first that recognises a file has it: the special before the general.
FAMILIES = (
    "haiku",
    "simclr",
    "vissl",
    "dino",
    "pycontrast",
    "moco",
    "lightning",
    "twist",
    "barlow",
    "simsiam",
    "mae",
    "swav",
)


def find_release(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Return the format of a published checkpoint, or None for a plain state dict.

    Parameters
    ----------
    keys : collection of str
        All names of the file, as `read_content` gives them.
    shapes : mapping
        Shapes of those that are tensors.
    """
    for family in FAMILIES:
        recognize = import_module(f"transferbench.backbones.releases.{family}").recognize
        found: Release | None = recognize(keys, shapes)
        if found is not None:
            return found
    return None
