"""What a weights file holds, in full sentences, for `transferbench check`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transferbench.backbones.releases.release import Release


def explain_weights(path: Path) -> list[str]:
    """Say what is in a file, what of it is the backbone, and how to evaluate it.

    Raises
    ------
    UserError
        If it is no weights file, or damaged.
    """
    from transferbench.backbones.weights import looks_like, take_backbone

    taken = take_backbone(path)
    state = taken.state
    numbers = sum(tensor.numel() for tensor in state.values())
    holds = f"{len(state)} tensors with {numbers:,} numbers"
    lines = [f"{path} holds {holds}; code that a file names is never executed."]
    if taken.release is not None:
        lines = [
            f"{path} is of the format of {taken.release.family}; code that a file names is never "
            "executed.",
            f"Its '{taken.release.branch}' network is the backbone: {holds}.",
        ]
    convolutions = sum(tensor.ndim == 4 for tensor in state.values())
    norms = sum(key.endswith("running_mean") for key in state)
    if norms:
        lines.append(f"It has {convolutions} convolutions and {norms} batch norms.")
    names = list(state)
    first, last = names[0], names[-1]
    lines.append(
        f"The first tensor is {first} {list(state[first].shape)}, the last {last} "
        f"{list(state[last].shape)}."
    )
    if taken.dropped:
        left = ", ".join(f"{name} ({count})" for name, count in taken.dropped.items())
        lines.append(f"Left out, with their numbers of tensors: {left}.")
    if taken.release is not None:
        lines += _wants(taken.release)
    likely = looks_like(state)
    where = "" if likely else ", where ARCH is a timm architecture"
    lines.append(f"Evaluate it with --model file:{path}@{likely or 'ARCH'}{where}.")
    return lines


def _wants(release: Release) -> list[str]:
    """Say what the format brings with it, and what else could be taken."""
    lines = []
    if release.branches:
        others = ", ".join(f"?branch={name}" for name in release.branches)
        lines.append(f"It has other networks, which are taken with {others}.")
    network: Mapping[str, Any] = release.network
    if "padding" in network:
        lines.append(
            f"It pads as it was trained (padding={network['padding']}); the published transfer "
            "numbers have ?padding=standard, as protocols of mode paper do."
        )
    told = {key: value for key, value in network.items() if key != "padding"}
    for key, value in told.items():
        lines.append(f"It is built with {key} = {value}.")
    if release.preprocessing:
        mean, std = (
            ", ".join(f"{value:g}" for value in release.preprocessing[key])
            for key in ("mean", "std")
        )
        lines.append(f"Its images are normalised by mean {mean} and std {std}.")
    return lines
