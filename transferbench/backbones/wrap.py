"""Any module as a backbone; torch-free at import."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from transferbench.backbones.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Interpolation,
    Preprocessing,
    Triple,
)
from transferbench.storage import digest

if TYPE_CHECKING:
    from torch import nn

    from transferbench.backbones.backbone import Backbone


def wrap_module(
    module: nn.Module,
    *,
    input_size: int,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
    interpolation: Interpolation = "bicubic",
    name: str | None = None,
) -> Backbone:
    """Make a backbone of any module; its digest comes from its weights, class and structure.

    Neither plain attributes nor the code of `forward` are in the digest, so that features are
    computed at every evaluation and never kept.

    Parameters
    ----------
    module : nn.Module
        Normalised images (B, 3, input_size, input_size) to features (B, D). It is not copied.
    input_size : int
        Side of the input in pixels.
    mean, std, interpolation
        See `Preprocessing`.
    name : str, optional
        Short name for tables; default the class's name and the first characters of the digest.
    """
    from transferbench.backbones.backbone import Backbone

    preprocessing = Preprocessing(
        input_size=input_size, mean=mean, std=std, interpolation=interpolation
    )
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    mark = digest(
        {
            "weights": module_digest(module),
            "class": kind,
            "structure": repr(module),
            "preprocessing": preprocessing.model_dump(mode="json"),
        }
    )
    short = name or f"{type(module).__name__.lower()}-{mark[:8]}"
    return Backbone(
        name=short, module=module, digest=mark, cacheable=False, **preprocessing.model_dump()
    )


def module_digest(module: nn.Module) -> str:
    """Return the SHA-256 of a module's state dict: names, types, shapes and values.

    Of a part's extra state that is no tensor, what `repr` tells.
    """
    import torch

    total = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            total.update(f"{key} {value!r}\n".encode())
            continue
        tensor = value.detach().to("cpu").contiguous()
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
