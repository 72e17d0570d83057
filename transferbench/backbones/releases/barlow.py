"""Barlow Twins and VICReg: a backbone beside a projector. The backbone's own file is a plain one.

github.com/facebookresearch/barlowtwins, facebookresearch/vicreg.
"""

from __future__ import annotations

from collections.abc import Collection

from transferbench.backbones.releases.release import Release, Shapes, has


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `model/backbone.` beside `model/projector.`."""
    if not has(keys, "model/backbone.", "model/projector."):
        return None
    return Release(
        family="Barlow Twins or VICReg",
        branch="backbone",
        prefixes=("model/backbone.",),
        heads=("fc.",),
    )
