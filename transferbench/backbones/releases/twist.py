"""TWIST: its training file holds the backbone a second time, under `backbone`.

github.com/bytedance/TWIST. Where a momentum encoder was used, `teacher_backbone` is the one that
its authors evaluate.
"""

from __future__ import annotations

from collections.abc import Collection

from transferbench.backbones.releases.release import IMAGENET_INPUT, Release, Shapes, has, is_vit


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `backbone/` beside `model/backbone.`."""
    if not has(keys, "backbone/", "model/backbone."):
        return None
    student, teacher = ("backbone/",), ("teacher_backbone/",)
    momentum = has(keys, *teacher)
    kept = teacher if momentum else student
    return Release(
        family="TWIST",
        branch="teacher" if momentum else "backbone",
        prefixes=kept,
        heads=("fc.", "head."),
        preprocessing=IMAGENET_INPUT if is_vit(keys, kept[0]) else {},
        branches={"backbone": student} if momentum else {},
    )
