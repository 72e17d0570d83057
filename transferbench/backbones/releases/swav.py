"""SwAV, DeepCluster-v2, SeLa-v2: a network with a projection head and prototypes.

github.com/facebookresearch/swav. Its ResNet pads by a layer of its own and two pixels in the
convolution, which gives the numbers of a padding of three.
"""

from __future__ import annotations

from collections.abc import Collection

from transferbench.backbones.releases.release import Release, Shapes, container

_HEADS = ("projection_head.", "prototypes")


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `prototypes` or `projection_head.` beside `conv1.weight`."""
    place = next((p for h in _HEADS if (p := container(keys, h)) is not None), None)
    if place is None or f"{place}conv1.weight" not in keys:
        return None
    several = f"{place}prototypes.prototypes0.weight" in keys
    return Release(
        family="DeepCluster-v2 or SeLa-v2" if several else "SwAV",
        branch="network",
        prefixes=(place,),
        heads=_HEADS,
    )
