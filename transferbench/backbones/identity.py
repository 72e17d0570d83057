"""What identifies a model, remembered so that telling it again costs neither torch nor timm."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferbench.backbones.releases import VERSION
from transferbench.backbones.settings import NetworkSettings, Preprocessing, backbone_digest
from transferbench.errors import NotAtHand, UserError
from transferbench.storage import cache_folder, canonical_json, digest, file_digest, write_atomic

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


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a weights file; of TensorFlow's index, with its data files."""
    own = file_digest(path)
    if path.suffix != ".index":
        return own
    return digest([own, *(file_digest(each) for each in sorted(path.parent.glob(_shards(path))))])


def release_facts(path: Path, weights: str, branch: str | None) -> dict[str, Any]:
    """Return what a published format wants of the network and its input; remembered by content.

    Parameters
    ----------
    path : Path
        A weights file.
    weights : str
        Its digest.
    branch : str or None
        The network in it that was asked for.

    Returns
    -------
    dict
        "network" and "preprocessing", JSON values; both are empty for a plain state dict, and for
        a file that cannot be read, which loading it will tell.

    Raises
    ------
    UserError
        If the file has no such branch.
    """

    def find() -> dict[str, Any]:
        from transferbench.backbones.weights import take_backbone

        release = take_backbone(path, branch=branch).release
        if release is None:
            return {"network": {}, "preprocessing": {}}
        return {"network": release.network, "preprocessing": release.preprocessing}

    try:
        facts: dict[str, Any] = remember(["release", str(VERSION), weights, branch or ""], find)
    except UserError:
        if branch is not None:
            raise
        facts = {"network": {}, "preprocessing": {}}
    return facts


def adapt(network: NetworkSettings, wanted: dict[str, Any]) -> NetworkSettings:
    """Return the network with what a release wants, where the user did not say otherwise."""
    said = {key: getattr(network, key) for key in network.model_fields_set}
    return NetworkSettings.model_validate(
        {**wanted, **said, "args": {**wanted.get("args", {}), **network.args}}
    )


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
    notes: Mapping[str, Any] | None = None,
) -> Backbone:
    """Fit a network to its input size, place it on a device and make it a backbone.

    Raises
    ------
    UserError
        If the device is not at hand, or the network does not take images of this size.
    """
    from transferbench.backbones.backbone import Backbone
    from transferbench.backbones.build import check_size, fit_size, place, pooling_of

    fit_size(module, given.input_size, name=network.name)
    placed = place(module, device)
    check_size(placed, given.input_size, device=device, name=network.name)
    return Backbone(
        name=name,
        module=placed,
        digest=backbone_digest(weights, network, given),
        notes={"pooling": pooling_of(module), **(notes or {})},
        **given.model_dump(),
    )


def _shards(index: Path) -> str:
    return f"{glob.escape(index.stem)}.data-*"
