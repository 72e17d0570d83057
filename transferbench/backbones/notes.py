"""What loading a weights file found: for records, and warnings where a wrong guess looks right."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transferbench.backbones.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NetworkSettings,
    Preprocessing,
)
from transferbench.backbones.weights import Taken
from transferbench.storage import file_digest

_TORCHVISION = {
    "19c8e357": "torchvision's ResNet-50, V1 of 2017",
    "0676ba61": "torchvision's ResNet-50, V1",
    "11ad3fa6": "torchvision's ResNet-50, V2",
}
"""Beginnings of SHA-256, which the files' names hold."""


def notes_of(taken: Taken, network: NetworkSettings) -> dict[str, Any]:
    """Return what a weights file held, JSON values: format, branch, what was dropped, padding."""
    notes: dict[str, Any] = {"padding": network.padding}
    if taken.release is not None:
        notes |= {"format": taken.release.family, "branch": taken.release.branch}
    if taken.dropped:
        notes["dropped"] = dict(taken.dropped)
    return notes


def torchvision_release(path: Path) -> str | None:
    """Return which of torchvision's ResNet-50 files this is, by content."""
    return _TORCHVISION.get(file_digest(path)[:8])


def warn_of_traps(
    taken: Taken, path: Path, network: NetworkSettings, given: Preprocessing, *, said: bool
) -> None:
    """Warn where a file loads, but a usual assumption about it may be wrong.

    Parameters
    ----------
    taken : Taken
    path : Path
        The file.
    network : NetworkSettings
        What the weights are put into; what is set in it was said.
    given : Preprocessing
        What will be done to its input.
    said : bool
        Whether the user gave the normalisation.
    """
    if torchvision_release(path) == _TORCHVISION["11ad3fa6"]:
        warnings.warn(
            f"{path} is {_TORCHVISION['11ad3fa6']} (80.9 % on ImageNet); the supervised baseline "
            "of arXiv 2011.13377 is V1 (76.1 %)",
            stacklevel=2,
        )
    bare_vit = "cls_token" in taken.state and "head.weight" not in taken.state
    usual = given.mean == IMAGENET_MEAN and given.std == IMAGENET_STD
    if taken.release is None and bare_vit and not usual and not said:
        values = ", ".join(f"{value:g}" for value in given.mean)
        warnings.warn(
            f"{path} does not say how its images were normalised; timm's default for the "
            f"architecture is taken (mean {values}), but DINO, MAE, iBOT and MoCo v3 use "
            "ImageNet's: write @ARCH.TAG, or ?mean=[0.485,0.456,0.406]&std=[0.229,0.224,0.225]",
            stacklevel=2,
        )
    if taken.release is not None:
        return
    _warn_of_heads(taken, path, network)
    if "conv1.weight" in taken.state:
        _warn_of_names(path, network, said=said)


def _warn_of_heads(taken: Taken, path: Path, network: NetworkSettings) -> None:
    """MoCo v3's ViT-S has timm's shapes but other heads; its position table gives it away."""
    table = taken.state.get("pos_embed")
    if table is None or table.ndim != 3 or table.shape[-1] != 384 or "num_heads" in network.args:
        return
    if not table[:, 0].any():
        warnings.warn(
            f"{path} has a fixed position table, as MoCo v3's ViT-S, which has 12 heads where "
            'timm\'s has 6: if it is that, write ?args={"num_heads":12}',
            stacklevel=3,
        )


def _warn_of_names(path: Path, network: NetworkSettings, *, said: bool) -> None:
    """Conversions to torchvision's names lose how a network was trained, but for their own name."""
    name = path.name.lower()
    padded = "padding" in network.model_fields_set
    if "simclr" in name and "vissl" not in name and not (said and padded):
        warnings.warn(
            f"{path} does not say how its images were normalised and padded; if it is Google's "
            "SimCLR, converted, write ?padding=same-pool&mean=[0,0,0]&std=[1,1,1]",
            stacklevel=3,
        )
    if "byol" in name and not padded:
        warnings.warn(
            f"{path} does not say how it pads; if it is DeepMind's BYOL, converted, write "
            "?padding=same (?padding=standard is the published transfer numbers')",
            stacklevel=3,
        )
