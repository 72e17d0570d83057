"""What a recogniser says of a weights file: which part is the backbone, and what it needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from transferbench.backbones.settings import IMAGENET_MEAN, IMAGENET_STD
from transferbench.errors import unknown

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
Convert = Callable[[dict[str, "Tensor"]], dict[str, "Tensor"]]

IMAGENET_INPUT = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
"""What all releases of ViTs were trained with, though timm's plain ViTs say otherwise."""

_CONTAINERS = ("state_dict/", "model/", "")


def as_they_are(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, whose names and layouts are timm's already."""
    return tensors


@dataclass(frozen=True)
class Release:
    """A recognised format, and how to take the backbone out of it.

    Attributes
    ----------
    family : str
        The methods whose files look so.
    branch : str
        The network that is kept: the one that the method's authors evaluate.
    prefixes : tuple of str
        Anchored: a tensor belongs to the backbone if its name begins with one; it is taken off.
    heads : tuple of str
        Anchored, after the prefix: what is dropped.
    convert : callable
        From names and layouts after the prefix to timm's.
    network : mapping
        Settings of the network that differ from the architecture's own: stem, padding, args.
    preprocessing : mapping
        What is done to the input, where the release differs from the architecture's default.
    branches : mapping
        Other networks in the file that can be asked for, with their prefixes.
    """

    family: str
    branch: str
    prefixes: tuple[str, ...]
    heads: tuple[str, ...] = ()
    convert: Convert = as_they_are
    network: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def on(self, branch: str | None, where: str) -> Release:
        """Return the release with another branch kept.

        Raises
        ------
        UserError
            If the file has no such branch, with the nearest.
        """
        if branch is None or branch == self.branch:
            return self
        if branch not in self.branches:
            raise unknown("branch", branch, [self.branch, *self.branches], where)
        return replace(self, branch=branch, prefixes=self.branches[branch])

    def take(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Return the backbone's tensors under timm's names, and counts of what was dropped.

        Parameters
        ----------
        tensors : mapping
            As `read_content` gives them.
        """
        kept: dict[str, Tensor] = {}
        dropped: dict[str, int] = {}
        for key, tensor in tensors.items():
            prefix = next((p for p in self.prefixes if key.startswith(p)), None)
            name = None if prefix is None else key.removeprefix(prefix)
            if name is None or name.startswith(self.heads or ("\0",)):
                group = group_of(key)
                dropped[group] = dropped.get(group, 0) + 1
            else:
                kept[name] = tensor
        return self.convert(kept), dropped


def group_of(key: str) -> str:
    """Return the part of a network that a name belongs to, e.g. "state_dict/encoder_k"."""
    container, slash, name = key.rpartition("/")
    if "." not in name:
        # Haiku's and TensorFlow's modules, and optimizers' states: deep, and numbered.
        *outer, last = key.split("/")[:3]
        last = re.sub(r"(?<=[a-z])_\d+$", "", last) if "/" in container else last
        return "/".join(outer if outer and last.isdecimal() else [*outer, last])
    head, dot, rest = name.partition(".")
    inner = rest.partition(".")[0]
    # One more level where a method keeps its backbone and heads side by side below one name.
    return f"{container}{slash}{head}{dot}{inner}" if dot and not inner.isdecimal() else key


def container(keys: Iterable[str], marker: str) -> str | None:
    """Return the container ("state_dict/", "model/" or "") that has names beginning so."""
    keys = list(keys)
    for place in _CONTAINERS:
        if any(key.startswith(place + marker) for key in keys):
            return place
    return None


def has(keys: Iterable[str], *starts: str) -> bool:
    """Return whether every one of these begins some name."""
    keys = list(keys)
    return all(any(key.startswith(start) for key in keys) for start in starts)


def is_vit(keys: Collection[str], prefix: str) -> bool:
    """Return whether the network under a prefix has a ViT's class token and patches."""
    return f"{prefix}cls_token" in keys and f"{prefix}patch_embed.proj.weight" in keys
