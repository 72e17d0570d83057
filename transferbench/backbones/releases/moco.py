"""MoCo v1, v2 and v3, PCL v1 and v2: a query encoder beside a momentum encoder.

github.com/facebookresearch/moco, facebookresearch/moco-v3, salesforce/PCL.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transferbench.backbones.releases.release import (
    IMAGENET_INPUT,
    Release,
    Shapes,
    container,
    is_vit,
)

_SMALL = 384  # width of a ViT-S


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `encoder_q.` (MoCo v1 and v2, PCL) or `base_encoder.` (MoCo v3)."""
    place = container(keys, "encoder_q.")
    if place is not None:
        deep = f"{place}encoder_q.fc.2.weight" in keys
        return Release(
            family="MoCo v2 or PCL v2" if deep else "MoCo v1 or PCL v1",
            branch="query",
            prefixes=(f"{place}encoder_q.",),
            heads=("fc.",),
            branches={"momentum": (f"{place}encoder_k.",)},
        )
    place = container(keys, "base_encoder.")
    if place is None:
        return None
    prefix = f"{place}base_encoder."
    network: dict[str, Any] = {}
    vit = is_vit(keys, prefix)
    if vit and shapes[f"{prefix}cls_token"][-1] == _SMALL:
        # Its ViT-S has 12 heads where timm's has 6: all shapes are equal, the features are not.
        network = {"args": {"num_heads": 12}}
    return Release(
        family="MoCo v3",
        branch="query",
        prefixes=(prefix,),
        heads=("fc.", "head."),
        network=network,
        preprocessing=IMAGENET_INPUT if vit else {},
        branches={"momentum": (f"{place}momentum_encoder.",)},
    )
