"""Writes weights files as the official code of each method wrote them."""

from __future__ import annotations

import os
import pickle
import sys
from collections import namedtuple
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, place: Path, function: Any = os.mkdir) -> None:
        self.place, self.function = place, function

    def __reduce__(self) -> Any:
        return self.function, (str(self.place),)


def thin(state: Mapping[str, torch.Tensor]) -> State:
    """The same names with few channels."""
    cut = {key: v[:2, :2] if v.ndim > 1 else v[:2] for key, v in state.items() if v.ndim}
    return {key: value.contiguous() for key, value in cut.items()}


def pad_as_tensorflow(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """SAME: the output has ceil(side / stride) pixels; what is missing goes to the right first."""
    (x,) = inputs
    kernel = module.kernel_size if isinstance(module.kernel_size, int) else module.kernel_size[0]
    stride = module.stride if isinstance(module.stride, int) else module.stride[0]
    need = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
    fill = float("-inf") if isinstance(module, torch.nn.MaxPool2d) else 0.0
    return (F.pad(x, (need // 2, need - need // 2) * 2, value=fill),)


def under(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {prefix + key: value for key, value in state.items()}


def copy_of(state: Mapping[str, torch.Tensor]) -> State:
    """The same names and shapes with another value, which costs no space in a file."""
    return {
        key: torch.full((), 0.125).to(value.dtype).expand(value.shape)
        for key, value in state.items()
    }


def linear(prefix: str, rows: int, columns: int) -> State:
    return {
        f"{prefix}weight": torch.ones(1).expand(rows, columns),
        f"{prefix}bias": torch.ones(rows),
    }


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def tensorflow_index(arrays: Mapping[str, np.ndarray], shard: Path) -> bytes:
    """Write the data file of a checkpoint and return the table that describes it."""
    entries = {"": b"\x08\x01"}
    with shard.open("wb") as file:
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            data = array.tobytes()
            dims = b"".join(
                b"\x12" + varint(len(size)) + size
                for size in (b"\x08" + varint(side) for side in array.shape)
            )
            kind = {"float32": 1, "int64": 9}[str(array.dtype)]
            entries[name] = (
                b"\x08" + varint(kind) + b"\x12" + varint(len(dims)) + dims
                + b"\x20" + varint(file.tell()) + b"\x28" + varint(len(data)) + b"\x35abcd"
            )  # fmt: skip
            file.write(data)
    table, handles = b"", []
    names = list(entries)
    for start in range(0, len(names), 50):
        handles.append((names[start + 49 : start + 50] or names[-1:], len(table)))
        block = table_block({name: entries[name] for name in names[start : start + 50]})
        handles[-1] = (handles[-1][0][0], varint(len(table)) + varint(len(block)))
        table += block + b"\0crc!"
    index = table_block(dict(handles))
    footer = varint(len(table)) + varint(0) + varint(len(table)) + varint(len(index))
    return table + index + b"\0crc!" + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def table_block(entries: Mapping[str, bytes]) -> bytes:
    out, before = b"", b""
    for name, value in entries.items():
        key = name.encode()
        shared = 0
        while shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        out += (
            varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        )
        before = key
    return out + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def simclr_variables(state: State, layers: tuple[int, ...] = (3, 4, 6, 3)) -> dict[str, np.ndarray]:
    """A ResNet's weights under TensorFlow's numbered names: a block's shortcut is made first."""
    order = [("conv1", "bn1")]
    for layer, blocks in enumerate(layers, 1):
        for block in range(blocks):
            at = f"layer{layer}.{block}."
            if block == 0:
                order.append((f"{at}downsample.0", f"{at}downsample.1"))
            order += [(f"{at}conv{i}", f"{at}bn{i}") for i in (1, 2, 3)]
    out = {}
    for number, (conv, norm) in enumerate(order):
        mark = f"_{number}" if number else ""
        kernel = state[f"{conv}.weight"].permute(2, 3, 1, 0).numpy()
        out[f"base_model/conv2d{mark}/kernel"] = kernel
        at = f"base_model/batch_normalization{mark}/"
        out[f"{at}gamma"] = state[f"{norm}.weight"].numpy()
        out[f"{at}beta"] = state[f"{norm}.bias"].numpy()
        out[f"{at}moving_mean"] = state[f"{norm}.running_mean"].numpy()
        out[f"{at}moving_variance"] = state[f"{norm}.running_var"].numpy()
    return out


def haiku_trees(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """A ResNet's weights as Haiku's parameters and state."""
    params: dict[str, Any] = {}
    averages: dict[str, Any] = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        name = f"res_net50/~/{haiku_name(module)}"
        shaped = value.numpy().reshape(1, 1, 1, -1)
        if leaf == "weight" and value.ndim == 4:
            params.setdefault(name, {})["w"] = value.permute(2, 3, 1, 0).contiguous().numpy()
        elif leaf in ("weight", "bias"):
            params.setdefault(name, {})[{"weight": "scale", "bias": "offset"}[leaf]] = shaped
        elif leaf in ("running_mean", "running_var"):
            which = "mean_ema" if leaf == "running_mean" else "var_ema"
            averages[f"{name}/~/{which}"] = {
                "average": shaped, "hidden": shaped + 1, "counter": np.array(7, np.int32)
            }  # fmt: skip
    return params, averages


def haiku_name(module: str) -> str:
    if "." not in module:
        return {"conv1": "initial_conv", "bn1": "initial_batchnorm"}[module]
    layer, block, part, *more = module.split(".")
    if part == "downsample":
        part = "shortcut_conv" if more == ["0"] else "shortcut_batchnorm"
    else:
        kind = "conv" if part.startswith("conv") else "batchnorm"
        part = f"{kind}_{int(part[-1]) - 1}"
    return f"block_group_{int(layer[-1]) - 1}/~/block_{block}/~/{part}"


@contextmanager
def module_with(name: str, **members: Any) -> Iterator[None]:
    """A module that exists while a file is written, and not when it is read."""
    parts = name.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    made = [n for n in names if n not in sys.modules]
    for each in made:
        sys.modules[each] = ModuleType(each)
    for key, value in members.items():
        value.__module__, value.__qualname__ = name, key
        setattr(sys.modules[name], key, value)
    try:
        yield
    finally:
        for each in made:
            del sys.modules[each]


def byol_pickle(
    path: Path, state: State, target: State, protocol: int = 2, optimizer: Any = None
) -> None:
    """BYOL's checkpoint: a named tuple of frozen dictionaries beside step and generator."""

    class Frozen(dict):
        def __reduce__(self) -> Any:
            return Frozen, (dict(self),)

    fields = ("online_params", "target_params", "online_state", "target_state", "opt_state")
    State_ = namedtuple("State_", fields)
    State_.__name__ = "_ByolExperimentState"

    def frozen(tree: dict[str, Any]) -> Any:
        return Frozen({key: Frozen(value) for key, value in tree.items()})

    with (
        module_with("haiku._src.data_structures", frozendict=Frozen),
        module_with("byol.byol_experiment", _ByolExperimentState=State_),
    ):
        params, averages = haiku_trees(state)
        other, other_averages = haiku_trees(target)
        for name in ("projector/linear", "predictor/linear_1", "classifier"):
            params[name] = {"w": np.ones((4, 2), np.float32), "b": np.ones(2, np.float32)}
        content = {
            "experiment_state": State_(
                frozen(params), frozen(other), frozen(averages), frozen(other_averages), optimizer
            ),
            "step": np.int64(300000),
            "rng": np.array([0, 1], np.uint32),
        }
        path.write_bytes(pickle.dumps(content, protocol=protocol))
