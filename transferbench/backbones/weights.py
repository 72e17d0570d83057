"""Weights files into networks: what is in the file must be the network, whole and nothing else."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferbench.backbones.build import first_line
from transferbench.errors import UserError

CONTAINERS = ("state_dict", "model", "backbone")
PREFIXES = ("module.", "backbone.", "encoder.", "model.")
PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a weights file; code in it is never executed.

    Parameters
    ----------
    path : Path
        `.safetensors`, or what `torch.save` writes (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`): a
        state dict, bare or in a container under "state_dict", "model" or "backbone".

    Raises
    ------
    UserError
        If the file is truncated, holds a pickle of anything but tensors and plain containers, or
        holds no state dict.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in PICKLED:
        endings = ", ".join((".safetensors", *PICKLED[:4]))
        raise UserError(f"{path} is not a weights file: its name ends in none of {endings}")
    content = _read_pickled(path)
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no state dict (names to tensors)")
    odd = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(
            f"{path} holds no state dict: {len(odd)} of its {len(content)} entries are no tensors "
            f"({_some(odd)})"
        )
    return {str(key): value for key, value in content.items()}


def load_weights(network: nn.Module, state: Mapping[str, Tensor], *, path: Path, name: str) -> None:
    """Put a state dict into a network whose every entry it must have, with the same shapes.

    One of the usual prefixes may stand before all names, and the architecture's own classifier is
    dropped; counters of batch norm may be absent. Nothing else may be left over.

    Parameters
    ----------
    network : nn.Module
        From `build_network`; changed in place.
    state : mapping
        Names to tensors.
    path, name
        File and architecture, for the message.

    Raises
    ------
    UserError
        If names are missing or left over, or shapes differ; names the first ones and counts all.
    """
    expected = network.state_dict()
    found = _strip_prefix(state, expected)
    classifiers = _classifiers(network)
    found = {
        k: v for k, v in found.items() if k in expected or k.rpartition(".")[0] not in classifiers
    }
    missing = [
        key for key in expected if key not in found and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in found if key not in expected]
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of {len(expected)} names are missing ({_some(missing)})")
        if unexpected:
            parts.append(f"{len(unexpected)} are not the network's ({_some(unexpected)})")
        raise UserError(f"{path} does not fit {name}: {'; '.join(parts)}")
    wrong = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit {name}: {len(wrong)} of {len(expected)} shapes differ "
            f"({_some(wrong)})"
        )
    network.load_state_dict({**expected, **found}, strict=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is truncated or no safetensors file: {first_line(error)}"
        ) from error
    return tensors


def _read_pickled(path: Path) -> Any:
    try:
        # torch warns of pickle versions before it refuses the file; the refusal is enough.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The message of torch advises to load without protection; ours must not.
        raise UserError(
            f"{path} is not a plain weights file: it is damaged, or a pickle that names code, "
            "which is never executed; save a state dict of tensors or use safetensors"
        ) from error
    # The reader of old files meets damage with whatever its bytes lead to (struct.error,
    # AssertionError, UnicodeDecodeError ...).
    except Exception as error:
        raise UserError(f"{path} is truncated or damaged: {first_line(error)}") from error


def _strip_prefix(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Take off the prefixes under which most of the expected names are found."""
    best, known = dict(state), sum(key in expected for key in state)
    candidates = [*PREFIXES, *(a + b for a in PREFIXES for b in PREFIXES if a != b)]
    for prefix in candidates:
        matched = sum(key.startswith(prefix) and key[len(prefix) :] in expected for key in state)
        if matched > known:
            best = {key.removeprefix(prefix): value for key, value in state.items()}
            known = matched
    return best


def _classifiers(network: nn.Module) -> set[str]:
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    given = config.get("classifier") or ()
    return {given} if isinstance(given, str) else set(given)


def _some(names: Collection[str], limit: int = 3) -> str:
    shown = ", ".join(list(names)[:limit])
    return f"{shown}, ..." if len(names) > limit else shown
