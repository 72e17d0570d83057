"""What identifies a model, remembered so that telling it again costs neither torch nor timm."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from transferbench.backbones.settings import NetworkSettings, Preprocessing, backbone_digest
from transferbench.errors import NotAtHand
from transferbench.storage import cache_folder, canonical_json, digest, write_atomic

if TYPE_CHECKING:
    from torch import nn

    from transferbench.backbones.backbone import Backbone
    from transferbench.backbones.reference import Reference


def full_preprocessing(architecture: str, given: dict[str, Any]) -> Preprocessing:
    """Return what is given, completed by timm's defaults, which are remembered without timm."""

    def ask() -> dict[str, Any]:
        from transferbench.backbones.build import default_preprocessing

        return default_preprocessing(architecture).model_dump(mode="json")

    default = remember(["preprocessing", architecture, version("timm")], ask)
    return Preprocessing.model_validate({**default, **given})


def remember(note: list[str], find: Any) -> Any:
    """Return a JSON value from the cache, or find it and keep it there."""
    path = cache_folder("models") / f"{digest(note)}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        found = find()
        write_atomic(path, canonical_json(found))
        return found


def describe(weights: str, network: NetworkSettings, given: Preprocessing) -> dict[str, Any]:
    """Return what identifies a model, JSON values: digest, weights, network, preprocessing."""
    return {
        "digest": backbone_digest(weights, network, given),
        "weights": weights,
        "network": network.model_dump(mode="json"),
        "preprocessing": given.model_dump(mode="json"),
    }


def short_name(stem: str, reference: Reference) -> str:
    """Return a stem with the digest's first 8 characters, if the model is at hand."""
    try:
        return f"{stem}-{reference.identity()['digest'][:8]}"
    except NotAtHand:
        return stem


def make_backbone(
    name: str,
    module: nn.Module,
    network: NetworkSettings,
    given: Preprocessing,
    weights: str,
    device: str,
) -> Backbone:
    """Place a network on a device and make it a backbone.

    Raises
    ------
    UserError
        If the device is not at hand, or the network does not take images of this size.
    """
    from transferbench.backbones.backbone import Backbone
    from transferbench.backbones.build import check_size, place

    placed = place(module, device)
    check_size(placed, given.input_size, device=device, name=network.name)
    return Backbone(
        name=name,
        module=placed,
        digest=backbone_digest(weights, network, given),
        **given.model_dump(),
    )
