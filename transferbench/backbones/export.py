"""A backbone as two files: `backbone.safetensors` and `backbone.json`, which says what it is."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from transferbench.backbones.settings import (
    Interpolation,
    NetworkSettings,
    Preprocessing,
    Triple,
    backbone_digest,
)
from transferbench.errors import NotAtHand, UserError
from transferbench.storage import digest, file_digest, write_atomic

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "backbone.safetensors"
IDENTITY = "backbone.json"


class ExportedBackbone(BaseModel):
    """What `backbone.json` holds.

    Attributes
    ----------
    name : str
        Short name for tables.
    network, preprocessing
        The architecture and what is done to its input.
    weights : str
        SHA-256 of the weights file.
    digest : str
        SHA-256 of weights, architecture and preprocessing.
    timm : str
        Version that built the network.
    load_with : str
        Python that loads the weights with timm, torch and safetensors alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    network: NetworkSettings
    preprocessing: Preprocessing
    weights: str
    digest: str
    timm: str
    load_with: str


def export_backbone(
    folder: Path,
    network: nn.Module,
    settings: NetworkSettings,
    *,
    name: str,
    input_size: int,
    mean: Triple,
    std: Triple,
    interpolation: Interpolation,
) -> str:
    """Write a network of `build_network` into a folder, the description last.

    Parameters
    ----------
    folder : Path
        Made if need be; a backbone that is there already is replaced.
    network : nn.Module
        Built from `settings`.
    name : str
        Short name for tables.
    input_size : int
        Side in pixels at which it is to be evaluated.
    mean, std, interpolation
        See `Preprocessing`.

    Returns
    -------
    str
        The backbone's digest.
    """
    import safetensors.torch
    import torch

    tensors = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    preprocessing = Preprocessing(
        input_size=input_size, mean=mean, std=std, interpolation=interpolation
    )
    weights = digest(data)
    description = ExportedBackbone(
        name=name,
        network=settings,
        preprocessing=preprocessing,
        weights=weights,
        digest=backbone_digest(weights, settings, preprocessing),
        timm=version("timm"),
        load_with=loading_code(settings),
    )
    write_atomic(folder / WEIGHTS, data)
    write_atomic(folder / IDENTITY, description.model_dump_json(indent=2) + "\n")
    return description.digest


def loading_code(settings: NetworkSettings, file: str = WEIGHTS) -> str:
    """Return Python that loads a weights file with timm, torch and safetensors alone."""
    from transferbench.backbones.build import changes_as_code

    arguments = "".join(f", {key}={value!r}" for key, value in settings.args.items())
    return (
        "import timm, torch\n"
        "from safetensors.torch import load_file\n"
        f"network = timm.create_model({settings.name!r}, num_classes=0{arguments})\n"
        + changes_as_code(settings)
        + f"network.load_state_dict(load_file({file!r}))\n"
    )


def read_export(folder: Path) -> ExportedBackbone:
    """Read a folder's `backbone.json` and check that its weights are those it describes.

    Imports no torch. The weights' digest is remembered, so asking again costs a stat.

    Raises
    ------
    NotAtHand
        If the folder or its backbone is absent.
    UserError
        If the description is not one, or the weights file was changed since.
    """
    if not folder.is_dir():
        raise NotAtHand(f"there is no run folder {folder}")
    path = folder / IDENTITY
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise NotAtHand(f"the run {folder} has no exported backbone: it is not finished")
    try:
        description = ExportedBackbone.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"{path} is not the description of a backbone: {_reason(error)}") from error
    if file_digest(folder / WEIGHTS) != description.weights:
        raise UserError(f"{folder / WEIGHTS} is not the file that {path} describes; pretrain again")
    return description


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error)
