"""Lightning checkpoints of lightly's benchmarks and of solo-learn.

github.com/lightly-ai/lightly, vturrisi/solo-learn. Lightly's DINO keeps the teacher under
`backbone.` and what it trained under `student_backbone.`; all others keep the trained network there
and the momentum copy beside it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transferbench.backbones.releases.release import IMAGENET_INPUT, Release, Shapes, has, is_vit

_LIGHTLY = ("projection_head.", "prediction_head.", "online_classifier.", "key_backbone.",
            "teacher_backbone.", "student_backbone.", "criterion.")  # fmt: skip
_SOLO = ("projector.", "predictor.", "classifier.", "momentum_backbone.", "momentum_projector.",
         "momentum_encoder.", "queue", "prototypes")  # fmt: skip
_COPIES = {"key_backbone.": "momentum", "teacher_backbone.": "momentum",
           "momentum_backbone.": "momentum", "momentum_encoder.": "momentum",
           "student_backbone.": "student"}  # fmt: skip
_PLACE = "state_dict/"


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `state_dict/backbone.` (solo-learn before: `encoder.`) beside their heads."""
    inner = [key.removeprefix(_PLACE) for key in keys if key.startswith(_PLACE)]
    lightly = any(key.startswith(_LIGHTLY) for key in inner)
    solo = any(key.startswith(_SOLO) for key in inner) and not lightly
    stem = next((s for s in ("backbone.", "encoder.") if any(k.startswith(s) for k in inner)), None)
    marked = any(key.startswith("pytorch-lightning_version") for key in keys)
    if stem is None or not (lightly or solo) or (stem == "encoder." and not marked):
        return None
    prefix = _PLACE + stem
    if is_vit(keys, f"{prefix}vit."):
        prefix += "vit."
    network: dict[str, Any] = {}
    if solo and shapes.get(f"{prefix}conv1.weight", ())[2:] == (3, 3):
        # Its networks for CIFAR pad their first 3x3 convolution by two pixels.
        network = {"stem": "small-pad2"}
    deep = prefix.removeprefix(_PLACE + stem)
    return Release(
        family="lightly" if lightly else "solo-learn",
        branch="teacher" if has(inner, "student_backbone.") else "backbone",
        prefixes=(prefix,),
        heads=("fc.", "head."),
        network=network,
        preprocessing=IMAGENET_INPUT if is_vit(keys, prefix) else {},
        branches={
            name: (f"{_PLACE}{copy}{deep}",) for copy, name in _COPIES.items() if has(inner, copy)
        },
    )
