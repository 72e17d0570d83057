"""DINO, iBOT and DINOv2.

github.com/facebookresearch/dino, bytedance/ibot, facebookresearch/dinov2. The training files of the
first two hold a student and a teacher; their authors evaluate the teacher.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from transferbench.backbones.releases.release import (
    IMAGENET_INPUT,
    Release,
    Shapes,
    container,
    has,
    is_vit,
)

if TYPE_CHECKING:
    from torch import Tensor


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `teacher/` beside `student/`, iBOT's `masked_embed`, DINOv2's `mask_token`."""
    if has(keys, "teacher/", "student/"):
        return Release(
            family="DINO or iBOT",
            branch="teacher",
            prefixes=("teacher/backbone.",),
            heads=("head.", "fc.", "masked_embed"),
            preprocessing=IMAGENET_INPUT if is_vit(keys, "teacher/backbone.") else {},
            branches={"student": ("student/backbone.",)},
        )
    place = container(keys, "masked_embed")
    if place is not None and is_vit(keys, place):
        return Release(
            family="iBOT",
            branch="network",
            prefixes=(place,),
            heads=("masked_embed", "head."),
            preprocessing=IMAGENET_INPUT,
        )
    if "mask_token" in keys and (has(keys, "register_tokens") or "blocks.0.ls1.gamma" in keys):
        return Release(
            family="DINOv2",
            branch="network",
            prefixes=("",),
            heads=("mask_token",),
            convert=convert_dinov2,
            preprocessing=IMAGENET_INPUT,
        )
    return None


def convert_dinov2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn DINOv2's names into timm's.

    With registers, timm adds no position to the class token (1, 1, D): it is added here, and leaves
    the table (1, N + 1, D).
    """
    out: dict[str, Tensor] = {}
    registers = "register_tokens" in tensors
    for key, tensor in tensors.items():
        name = re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", key))
        if key == "register_tokens":
            out["reg_token"] = tensor
        elif key == "cls_token" and registers:
            out[key] = tensor + tensors["pos_embed"][:, :1]
        elif key == "pos_embed" and registers:
            out[key] = tensor[:, 1:]
        else:
            out[name] = tensor
    return out
