"""SimSiam: an encoder whose classifier is a projector of three layers, and a predictor.

github.com/facebookresearch/simsiam.
"""

from __future__ import annotations

from collections.abc import Collection

from transferbench.backbones.releases.release import Release, Shapes, container, has


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `encoder.fc.6.`, or `encoder.` beside `predictor.`."""
    place = container(keys, "encoder.")
    if place is None:
        return None
    if not has(keys, f"{place}encoder.fc.6.") and not has(keys, f"{place}predictor."):
        return None
    return Release(
        family="SimSiam", branch="encoder", prefixes=(f"{place}encoder.",), heads=("fc.",)
    )
