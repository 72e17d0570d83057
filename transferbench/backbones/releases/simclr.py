"""SimCLR v1 and v2: TensorFlow's variables, numbered in the order in which they were made.

github.com/google-research/simclr; and what tonylins/simclr-converter (v1) and
Separius/SimCLRv2-Pytorch make of them. A block's shortcut is made before its three convolutions,
where torch's comes last. Images are not normalised, and the first pooling pads as TensorFlow does:
nothing on the left, one pixel on the right.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from transferbench.backbones.releases.release import Release, Shapes, has
from transferbench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Convolutions to blocks per layer of a ResNet of bottlenecks.
_LAYERS = {53: (3, 4, 6, 3), 104: (3, 4, 23, 3), 155: (3, 8, 36, 3)}
_NUMBERED = re.compile(r"(conv2d|batch_normalization)(?:_(\d+))?/(.+)")
_LEAVES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
           "moving_variance": "running_var"}  # fmt: skip
_NETWORK = {"padding": "same-pool"}
_INPUT = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def recognize(keys: Collection[str], shapes: Shapes) -> Release | None:
    """Recognise by `base_model/conv2d/kernel`, `resnet/` beside `head/`, or a shortcut made first.

    The converter of v1 keeps torchvision's names: that a block's shortcut comes before its first
    convolution is all that tells its files from others.
    """
    if "base_model/conv2d/kernel" in keys:
        second = has(keys, "head_contrastive/nl_")
        ema = "ema_model/base_model/"
        return Release(
            family="SimCLR v2" if second else "SimCLR v1",
            branch="base",
            prefixes=("base_model/",),
            convert=convert_variables,
            network=_NETWORK,
            preprocessing=_INPUT,
            branches={"ema": (ema,)} if has(keys, ema) else {},
        )
    if has(keys, "resnet/", "head/"):
        return Release(
            family="SimCLR v2, converted",
            branch="base",
            prefixes=("resnet/",),
            heads=("fc.",),
            convert=convert_ordered,
            network=_NETWORK,
            preprocessing=_INPUT,
        )
    names = list(keys)
    shortcut, first = (f"state_dict/layer1.0.{m}.weight" for m in ("downsample.0", "conv1"))
    if shortcut in names and first in names and names.index(shortcut) < names.index(first):
        return Release(
            family="SimCLR v1, converted",
            branch="base",
            prefixes=("state_dict/",),
            heads=("fc.",),
            network=_NETWORK,
            preprocessing=_INPUT,
        )
    return None


def convert_variables(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn TensorFlow's variables into torch's.

    Kernels (H, W, in, out) become (out, in, H, W).

    Raises
    ------
    UserError
        If they are not those of a ResNet of bottlenecks.
    """
    kernels: dict[int, Tensor] = {}
    norms: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _NUMBERED.fullmatch(key)
        if found is None or found[3].endswith("Momentum"):
            continue
        number = int(found[2] or 0)
        if found[1] == "conv2d":
            kernels[number] = tensor.permute(3, 2, 0, 1).contiguous()
        else:
            norms.setdefault(number, {})[_LEAVES.get(found[3], found[3])] = tensor
    return _pair([kernels[i] for i in sorted(kernels)], [norms[i] for i in sorted(norms)])


def convert_ordered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn a network whose parts have other names, but the same order of making, into torch's.

    Raises
    ------
    UserError
        If they are not those of a ResNet of bottlenecks.
    """
    kernels = [tensor for tensor in tensors.values() if tensor.ndim == 4]
    norms: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, leaf = key.rpartition(".")
        if tensor.ndim == 1:
            norms.setdefault(module, {})[leaf] = tensor
    return _pair(kernels, list(norms.values()))


def _pair(kernels: list[Tensor], norms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    layers = _LAYERS.get(len(kernels))
    if layers is None or len(norms) != len(kernels):
        raise UserError(
            f"a SimCLR file with {len(kernels)} convolutions and {len(norms)} batch norms is no "
            "plain ResNet (53 of each for a ResNet-50): selective kernels and other stems are "
            "architectures that timm lacks"
        )
    names = [("conv1", "bn1")]
    for layer, blocks in enumerate(layers, start=1):
        for block in range(blocks):
            at = f"layer{layer}.{block}."
            names += [(f"{at}downsample.0", f"{at}downsample.1")] if block == 0 else []
            names += [(f"{at}conv{i}", f"{at}bn{i}") for i in (1, 2, 3)]
    out: dict[str, Tensor] = {}
    for (conv, norm), kernel, values in zip(names, kernels, norms, strict=True):
        out[f"{conv}.weight"] = kernel
        out |= {f"{norm}.{leaf}": value for leaf, value in values.items()}
    return out
