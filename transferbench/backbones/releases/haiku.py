"""BYOL's pickles of Haiku parameters.

github.com/google-deepmind/deepmind-research (byol). Convolutions and pooling pad as SAME does in
TensorFlow: in a network that pads as torch does, the same weights give about 70 % on ImageNet
instead of 74.6. The numbers of arXiv 2011.13377 were measured so; `?padding=standard` repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from transferbench.backbones.releases.release import Release, Shapes

if TYPE_CHECKING:
    from torch import Tensor

_STATE = "experiment_state/"
# The fields of the named tuple, which a pickle knows by number alone.
_FIELDS = ("online_params", "target_params", "online_state", "target_state")
_BLOCK = re.compile(r"block_group_(\d+)/.*?block_(\d+)/(?:~/)?(.+)$")
_PLACES = {"shortcut_conv": "downsample.0", "shortcut_batchnorm": "downsample.1"}
_LEAVES = {"w": "weight", "scale": "weight", "offset": "bias"}


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `experiment_state` and Haiku's `initial_conv`."""
    first = [key for key in keys if key.startswith(_STATE) and key.endswith("initial_conv/w")]
    if not first:
        return None
    fields = _FIELDS if first[0].split("/")[1] in _FIELDS else tuple("0123")
    heads = {
        name.split("/")[0] + "/"
        for key in keys
        if key.startswith(_STATE)
        and "initial_" not in (name := key.split("/", 2)[-1])
        and "block_group_" not in name
    }
    online = (f"{_STATE}{fields[0]}/", f"{_STATE}{fields[2]}/")
    target = (f"{_STATE}{fields[1]}/", f"{_STATE}{fields[3]}/")
    return Release(
        family="BYOL",
        branch="online",
        prefixes=online,
        heads=tuple(sorted(heads)),
        convert=convert,
        network={"padding": "same"},
        branches={"target": target},
    )


def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn Haiku's names and layouts into torch's.

    Kernels (H, W, in, out) become (out, in, H, W); scales, offsets and averages (1, 1, 1, C)
    become (C,). Of a running mean or variance, the average is taken.
    """
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, leaf = key.rpartition("/")
        if leaf in ("hidden", "counter"):
            continue
        statistic = {"/~/mean_ema": "running_mean", "/~/var_ema": "running_var"}
        ending = next((e for e in statistic if module.endswith(e)), None)
        name = _module_name(module.removesuffix(ending or ""))
        last = statistic[ending] if ending else _LEAVES.get(leaf, leaf)
        value = tensor.permute(3, 2, 0, 1) if leaf == "w" and tensor.ndim == 4 else tensor.flatten()
        out[f"{name}.{last}"] = value.contiguous()
    return out


def _module_name(module: str) -> str:
    found = _BLOCK.search(module)
    if found is None:
        return {"initial_conv": "conv1", "initial_batchnorm": "bn1"}.get(
            module.rpartition("/")[2], module
        )
    group, block, part = found.groups()
    inner = re.fullmatch(r"(conv|batchnorm)_(\d+)", part)
    if inner is not None:
        kind = "conv" if inner[1] == "conv" else "bn"
        part = f"{kind}{int(inner[2]) + 1}"
    return f"layer{int(group) + 1}.{block}.{_PLACES.get(part, part)}"
