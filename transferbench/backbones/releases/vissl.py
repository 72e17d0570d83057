"""VISSL's model zoo: the trunk of a classy-vision state, or what was converted for it.

github.com/facebookresearch/vissl.
"""

from __future__ import annotations

from collections.abc import Collection

from transferbench.backbones.releases.release import Release, Shapes

_BLOCKS = "_feature_blocks."
_TRUNK = "base_model/model/trunk/"


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `_feature_blocks.`; beside another copy, the one of the trunk is kept."""
    prefixes = {key[: key.index(_BLOCKS) + len(_BLOCKS)] for key in keys if _BLOCKS in key}
    if not prefixes:
        return None
    trunk = sorted(prefix for prefix in prefixes if _TRUNK in prefix) or sorted(prefixes)
    return Release(family="VISSL", branch="trunk", prefixes=(trunk[0],), heads=("fc.",))
