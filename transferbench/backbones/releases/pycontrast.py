"""InsDis, PIRL, InfoMin and others of PyContrast: `model` beside a memory bank `contrast`.

github.com/HobbitLong/PyContrast. Its MoCo is a run of its own, not Facebook's release.
"""

from __future__ import annotations

from collections.abc import Collection

from transferbench.backbones.releases.release import Release, Shapes, has


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `model/encoder.` with the bank, or with a head for patches or features."""
    bank = any(key.split("/")[0] == "contrast" for key in keys)
    heads = any(key.startswith(("model/head.", "model/head_jig.", "model/jigsaw")) for key in keys)
    if not has(keys, "model/encoder.") or not (bank or heads):
        return None
    jigsaw = any(key.startswith(("model/head_jig.", "model/jigsaw")) for key in keys)
    momentum = has(keys, "model_ema/encoder.")
    plain = "InsDis or a rerun of MoCo" if momentum else "InsDis"
    return Release(
        family=f"{'PIRL or InfoMin' if jigsaw else plain} (PyContrast)",
        branch="encoder",
        prefixes=("model/encoder.",),
        heads=("fc.",),
        branches={"momentum": ("model_ema/encoder.",)} if momentum else {},
    )
