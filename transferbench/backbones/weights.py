"""Weights files into networks: what is in the file must be the network, whole and nothing else."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferbench.backbones.files import Content, read_content
from transferbench.backbones.releases import find_release
from transferbench.backbones.releases.release import Release
from transferbench.errors import UserError

CONTAINERS = ("state_dict", "model", "backbone")
PREFIXES = ("module.", "backbone.", "encoder.", "model.")
_RESNETS = {20: "resnet18", 36: "resnet34", 53: "resnet50", 104: "resnet101", 155: "resnet152"}
_VITS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


@dataclass(frozen=True)
class Taken:
    """The backbone of a weights file.

    Attributes
    ----------
    state : dict of Tensor
        Names to tensors; of a plain file everything it holds.
    release : Release or None
        The published format, if it is one.
    dropped : dict of int
        Parts of the file that are left out, with their numbers of entries.
    """

    state: dict[str, Tensor]
    release: Release | None = None
    dropped: dict[str, int] = field(default_factory=dict)


def take_backbone(path: Path, *, branch: str | None = None) -> Taken:
    """Read a weights file and take the backbone out of it; code in it is never executed.

    Parameters
    ----------
    path : Path
        See `read_content`. Published formats are recognised by their names; others must be a state
        dict, bare or under "state_dict", "model" or "backbone".
    branch : str, optional
        Another network of a published format than the one that its authors evaluate.

    Raises
    ------
    UserError
        If the file is truncated, holds no state dict, or has no such branch.
    """
    content = read_content(path)
    release = find_release(content.keys, content.shapes)
    if release is None:
        if branch is not None:
            raise UserError(
                f"{path} is of no format that has several networks, so 'branch={branch}' means "
                "nothing; leave it out"
            )
        return Taken(_plain(content, path))
    release = release.on(branch, str(path))
    try:
        state, dropped = release.take(content.tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # A file that looks like the format but is not may lack what its conversion needs.
    except (KeyError, IndexError, RuntimeError) as error:
        raise UserError(
            f"{path} looks like a file of {release.family}, but its entries are not: {error}"
        ) from error
    if not state:
        raise UserError(f"{path} holds no '{release.branch}' network of {release.family}")
    return Taken(state, release, dropped)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict that a weights file holds; raises as `take_backbone`."""
    return take_backbone(path).state


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
        If names are missing or left over, shapes differ, or a number is not finite; names the
        first ones, counts all, and says what would fit.
    """
    expected = network.state_dict()
    found = _strip_prefix(state, expected)
    _check_stem(found, expected, path)
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
        parts.append(_advice(found, expected, name))
        raise UserError(f"{path} does not fit {name}: {'; '.join(filter(None, parts))}")
    wrong = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit {name}: {len(wrong)} of {len(expected)} shapes differ "
            f"({_some(wrong)}){_table(found, expected)}"
        )
    _check_values(found, path)
    network.load_state_dict({**expected, **found}, strict=True)


def _plain(content: Content, path: Path) -> dict[str, Tensor]:
    """Return the state dict of a plain file, whose every entry must be a tensor."""
    keys = content.keys
    place = next((f"{c}/" for c in CONTAINERS if any(k.startswith(f"{c}/") for k in keys)), "")
    odd = {k.removeprefix(place): v for k, v in content.others.items() if k.startswith(place)}
    state = {k.removeprefix(place): v for k, v in content.tensors.items() if k.startswith(place)}
    if odd:
        code = next((f"; it names code ({c}), which is never executed" for c in odd.values()
                     if "." in c), "")  # fmt: skip
        raise UserError(
            f"{path} holds no state dict: {len(odd)} of its {len(odd) + len(state)} entries are no "
            f"tensors ({_some(odd)}){code}"
        )
    return state


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


def _check_stem(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Refuse first convolutions that another option, or no RGB image, would be needed for."""
    key = next((k for k in ("conv1.weight", "patch_embed.proj.weight") if k in expected), None)
    have, want = (None, None) if key is None else (found.get(key), expected[key])
    if have is None or want is None or have.ndim != 4:
        return
    if have.shape[1] != want.shape[1]:
        raise UserError(
            f"{path}: {key} takes {have.shape[1]} channels instead of {want.shape[1]}: a network "
            "for Sobel-filtered or Lab images, which cannot take RGB"
        )
    if key == "conv1.weight" and have.shape[2:] == (3, 3) and want.shape[2:] == (7, 7):
        raise UserError(
            f"{path}: {key} is {tuple(have.shape)} instead of {tuple(want.shape)}: a stem for "
            "small images; write ?stem=small, or ?stem=small-pad2 for solo-learn's"
        )
    if key == "conv1.weight" and have.shape[2:] == (7, 7) and want.shape[2:] == (3, 3):
        raise UserError(
            f"{path}: {key} is {tuple(have.shape)} instead of {tuple(want.shape)}: the standard "
            "stem; leave out ?stem="
        )
    if key == "conv1.weight" and have.shape[0] in (2 * want.shape[0], 4 * want.shape[0]):
        raise UserError(
            f"{path}: {key} is {tuple(have.shape)} instead of {tuple(want.shape)}: a ResNet "
            f"{have.shape[0] // want.shape[0]} times as wide, which timm lacks"
        )


def _check_values(found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not finite, and a file whose every matrix is constant."""
    wide = {k: v for k, v in found.items() if v.is_floating_point()}
    bad = [key for key, value in wide.items() if not torch.isfinite(value).all()]
    if bad:
        raise UserError(
            f"{path} holds numbers that are not finite in {len(bad)} of {len(found)} entries "
            f"({_some(bad)}): the training diverged or the file is damaged; take an earlier one"
        )
    matrices = [value for value in wide.values() if value.ndim > 1 and value.numel() > 1]
    if matrices and all(bool((value == value.flatten()[0]).all()) for value in matrices):
        raise UserError(
            f"{path} holds one and the same number in each of its {len(matrices)} matrices: no "
            "network was trained into it"
        )


def _advice(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> str:
    """What the file holds instead, and the architecture that it looks like."""
    counts = [(_count(found, 4), _norms(found)), (_count(expected, 4), _norms(expected))]
    said = ""
    if counts[0] != counts[1] and counts[1][1]:
        said = (
            f"it has {counts[0][0]} convolutions and {counts[0][1]} batch norms instead of "
            f"{counts[1][0]} and {counts[1][1]}"
        )
    likely = looks_like(found)
    if likely is not None and likely != name.partition(".")[0]:
        said += f"{'; ' if said else ''}it looks like {likely}: write @{likely}"
    return said


def looks_like(state: Mapping[str, Tensor]) -> str | None:
    """Return the usual ResNet or ViT whose names and sizes a state dict has, or None."""
    if "layer1.0.conv1.weight" in state:
        return _RESNETS.get(_count(state, 4))
    patches = state.get("patch_embed.proj.weight")
    if patches is None or patches.ndim != 4 or "blocks.0.attn.qkv.weight" not in state:
        return None
    size, side = _VITS.get(patches.shape[0]), patches.shape[2]
    if "blocks.0.ls1.gamma" in state:
        registers = "_reg4" if "reg_token" in state else ""
        return f"vit_{size}_patch{side}{registers}_dinov2" if size else None
    return f"vit_{size}_patch{side}_224" if size else None


def _table(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Say what a position table of another size means."""
    have, want = found.get("pos_embed"), expected.get("pos_embed")
    if have is None or want is None or have.ndim != 3 or have.shape[1] == want.shape[1]:
        return ""
    patches = expected.get("patch_embed.proj.weight")
    if patches is None:
        return ""
    # Beside the patches of a square there is at most a class token.
    pixels = math.isqrt(have.shape[1]) * patches.shape[2]
    return f'; its position table is for images of {pixels} px: write ?args={{"img_size":{pixels}}}'


def _count(state: Mapping[str, Tensor], dimensions: int) -> int:
    return sum(value.ndim == dimensions for value in state.values())


def _norms(state: Mapping[str, Tensor]) -> int:
    return sum(key.endswith("running_mean") for key in state)


def _classifiers(network: nn.Module) -> set[str]:
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    given = config.get("classifier") or ()
    return {given} if isinstance(given, str) else set(given)


def _some(names: Collection[str], limit: int = 3) -> str:
    shown = ", ".join(list(names)[:limit])
    return f"{shown}, ..." if len(names) > limit else shown
