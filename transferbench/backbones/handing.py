"""A backbone as other tools load it: timm, torchvision, safetensors, a folder for the Hub."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from transferbench.backbones.build import changes_as_code, default_preprocessing, pooling_of
from transferbench.backbones.export import export_backbone, loading_code
from transferbench.backbones.hub import CONFIG, WEIGHTS, Own
from transferbench.backbones.settings import NetworkSettings, Preprocessing
from transferbench.errors import UserError
from transferbench.storage import write_atomic

Form = Literal["timm", "torchvision", "safetensors", "hub-folder"]
FORMS: tuple[str, ...] = get_args(Form)

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
            "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2")  # fmt: skip
_VITS = {
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
}
_VIT_NAMES = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)


@dataclass(frozen=True)
class Handed:
    """What was written: the files' names, and Python that loads them."""

    files: list[str]
    code: str


def hand_over(
    folder: Path,
    form: Form,
    module: nn.Module,
    network: NetworkSettings,
    preprocessing: Preprocessing,
    *,
    name: str,
) -> Handed:
    """Write a backbone into a folder.

    Parameters
    ----------
    folder : Path
        Made if need be; files of the same names are replaced.
    form : {"timm", "torchvision", "safetensors", "hub-folder"}
    module : nn.Module
        As a reference's `load` gives it.
    network, preprocessing
        The architecture, and what is done to its input.
    name : str
        Short name, the stem of single files.

    Raises
    ------
    UserError
        If torchvision has no such architecture; nothing is written then.
    """
    import safetensors.torch

    network = _as_it_is(module, network)
    if form == "safetensors":
        export_backbone(folder, module, network, name=name, **preprocessing.model_dump())
        return Handed(["backbone.safetensors", "backbone.json"], loading_code(network))
    state = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in module.state_dict().items()
    }
    if form == "torchvision":
        renamed, code = _for_torchvision(state, network, f"{name}.pth")
        buffer = io.BytesIO()
        torch.save(renamed, buffer)
        write_atomic(folder / f"{name}.pth", buffer.getvalue())
        return Handed([f"{name}.pth"], code)
    data = safetensors.torch.save(state, metadata={"format": "pt"})
    if form == "timm":
        write_atomic(folder / f"{name}.safetensors", data)
        return Handed([f"{name}.safetensors"], loading_code(network, f"{name}.safetensors"))
    write_atomic(folder / WEIGHTS[0], data)
    config = _config(module, network, preprocessing)
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    if changes_as_code(network):
        # timm's constructor cannot make it, so that its `local-dir:` cannot either.
        return Handed([WEIGHTS[0], CONFIG], loading_code(network, WEIGHTS[0]))
    code = "import timm\nnetwork = timm.create_model('local-dir:.', pretrained=True)\n"
    return Handed([WEIGHTS[0], CONFIG], code)


def _as_it_is(module: nn.Module, network: NetworkSettings) -> NetworkSettings:
    """Return the settings with the side that a position table was interpolated for."""
    patches: Any = getattr(module, "patch_embed", None)
    held = getattr(patches, "img_size", None)
    if held is None or not hasattr(module, "set_input_size"):
        return network
    if held[0] == network.args.get("img_size", default_preprocessing(network.name).input_size):
        return network
    args = {**network.args, "img_size": held[0]}
    return NetworkSettings.model_validate({**network.model_dump(), "args": args})


def _config(
    module: nn.Module, network: NetworkSettings, preprocessing: Preprocessing
) -> dict[str, Any]:
    """Return timm's `config.json`, and under our name what it cannot say."""
    side = preprocessing.input_size
    own = Own(network=network, preprocessing=preprocessing)
    return {
        "architecture": network.name.partition(".")[0],
        "num_classes": 0,
        "num_features": int(getattr(module, "num_features", 0)),
        "global_pool": pooling_of(module) or "",
        **({"model_args": network.args} if network.args else {}),
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "interpolation": preprocessing.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": 0,
            "custom_load": False,
        },
        "transferbench": own.model_dump(mode="json"),
    }


def _for_torchvision(
    state: Mapping[str, Tensor], network: NetworkSettings, file: str
) -> tuple[dict[str, Tensor], str]:
    """Return a state dict under torchvision's names, and Python that loads it."""
    architecture = network.name.partition(".")[0]
    further = {key: value for key, value in network.args.items() if key != "img_size"}
    if architecture in _RESNETS and not network.args:
        renamed = dict(state)
        made = f"network = torchvision.models.{architecture}()\nnetwork.fc = torch.nn.Identity()\n"
    elif architecture in _VITS and not further:
        renamed = {_vit_name(key): value for key, value in state.items()}
        side = network.args.get("img_size", 224)
        made = (
            f"network = torchvision.models.{_VITS[architecture]}(image_size={side})\n"
            "network.heads = torch.nn.Identity()\n"
        )
    else:
        told = f" with args {network.args}" if network.args else ""
        raise UserError(
            f"torchvision has no {network.name}{told}; it has {', '.join((*_RESNETS, *_VITS))}; "
            "--to timm and --to hub-folder take every architecture"
        )
    return renamed, (
        f"import torch, torchvision\n{made}{changes_as_code(network)}"
        f"network.load_state_dict(torch.load({file!r}, weights_only=True))\n"
    )


def _vit_name(key: str) -> str:
    for pattern, replacement in _VIT_NAMES:
        key = re.sub(pattern, replacement, key)
    return key
