"""MAE: a ViT's encoder, with or without the decoder that is dropped.

github.com/facebookresearch/mae. The position table is fixed but stored, and always loaded.
"""

from __future__ import annotations

from collections.abc import Collection

from transferbench.backbones.releases.release import IMAGENET_INPUT, Release, Shapes, has, is_vit


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `decoder_blocks.0.`, or by a ViT under `model` without a classifier."""
    for place in ("model/", ""):
        decoder = has(keys, f"{place}decoder_blocks.0.")
        # DeiT's files have the same container, but a classifier in it.
        encoder = place and is_vit(keys, place) and not has(keys, f"{place}head.")
        if decoder or encoder:
            return Release(
                family="MAE",
                branch="encoder",
                prefixes=(place,),
                heads=("mask_token", "decoder_"),
                preprocessing=IMAGENET_INPUT,
            )
    return None
