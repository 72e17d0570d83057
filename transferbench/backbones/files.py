"""Weights files of any format as one flat mapping; what a file is, its bytes say, not its name.

No code in a file is ever imported or called: what a pickle names beside tensors is an inert mark.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferbench.backbones import tensorflow
from transferbench.backbones.build import first_line
from transferbench.backbones.pickles import Named, hostile, is_hostile, read_pickle
from transferbench.errors import UserError

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".torch", ".pkl", ".index")
_LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
_WRAPPERS = ("module.", "_orig_mod.")
_DEEPEST, _MOST = 16, 500_000
_REFUSED = (
    (b"\x89HDF\r\n\x1a\n", "a Keras file (HDF5); save its weights as safetensors"),
    (b"\x93NUMPY", "one array (.npy); save a state dict as safetensors"),
    (b"\x1f\x8b", "compressed (gzip); unpack it first"),
    (b"BZh", "compressed (bzip2); unpack it first"),
    (b"\xfd7zXZ", "compressed (xz); unpack it first"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights; fetch them with git lfs pull",
    ),
    (b"<!", "a web page that was saved in place of the weights; download them again"),
    (b"<h", "a web page that was saved in place of the weights; download them again"),
    (b'{"', "a JSON text that was saved in place of the weights; download them again"),
)


@dataclass(frozen=True)
class Content:
    """What a weights file holds, flattened: parts of nested containers are joined by "/".

    Attributes
    ----------
    tensors : dict of Tensor
        By name, e.g. "state_dict/encoder_q.conv1.weight". What wraps a network for training in
        parallel ("module.") or compiled ("_orig_mod.") is taken off.
    others : dict of str
        What else there is by name: the code it names, or the kind of value.
    """

    tensors: dict[str, Tensor]
    others: dict[str, str]

    @property
    def keys(self) -> list[str]:
        """All names."""
        return [*self.tensors, *self.others]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_content(path: Path) -> Content:
    """Read a weights file.

    Parameters
    ----------
    path : Path
        safetensors; what `torch.save` writes, old or new; a plain pickle of arrays; TensorFlow's
        checkpoint by its `.index` file or in a zip.

    Raises
    ------
    UserError
        If it is truncated, damaged, none of these, or holds no tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
            file.seek(max(0, path.stat().st_size - 8))
            tail = file.read(8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    content = _flatten(path, _reader(path, head, tail)(path))
    if not content.tensors:
        named = [code for code in content.others.values() if "." in code]
        if named:
            raise UserError(
                f"{path} holds no tensors but names code ({named[0]}), which is never executed; "
                "save a state dict of tensors or use safetensors"
            )
        raise UserError(f"{path} holds no state dict (names to tensors)")
    return content


def _reader(path: Path, head: bytes, tail: bytes) -> Callable[[Path], Any]:
    if not head:
        raise UserError(f"{path} is truncated or damaged: it is empty")
    if head.startswith(b"PK\x03\x04"):
        return _read_zip
    if _LEGACY in head[:32]:
        return _read_torch
    if head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return read_pickle
    if tail == tensorflow.MAGIC:
        return _read_tensorflow
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors
    if head[257:262] == b"ustar":
        raise UserError(
            f"{path} is a tar archive: unpack it, or, if torch 0.1 wrote it, load and save it with "
            "a later torch"
        )
    for start, what in _REFUSED:
        if head.lstrip().startswith(start):
            raise UserError(f"{path} is {what}")
    if path.suffix in ENDINGS:
        return _read_torch
    raise UserError(
        f"{path} is not a weights file: its first bytes are of no known format, and its name ends "
        f"in none of {', '.join(ENDINGS[:5])}"
    )


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


def _read_zip(path: Path) -> Any:
    """A zip: what torch writes, or TensorFlow's checkpoint as it is handed out."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            index = next((name for name in names if name.endswith(".index")), None)
            if index is not None:
                stem = index.removesuffix(".index")
                return _tensors_of(
                    archive.read(index), lambda i, n: archive.read(_shard(stem, i, n))
                )
    # Damage shows in a zip's many parts, each with its own exception.
    except Exception as error:
        raise UserError(f"{path} is truncated or damaged: {first_line(error)}") from error
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise UserError(
            f"{path} is a TorchScript program, which is code; save the network's state_dict() "
            "instead"
        )
    if any(name.endswith("saved_model.pb") for name in names):
        raise UserError(f"{path} is a TensorFlow SavedModel; its checkpoint (.index) can be read")
    if names and all(name.endswith(".npy") for name in names):
        raise UserError(f"{path} is a file of numpy arrays (.npz); take the safetensors of timm's")
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(f"{path} is a zip archive without weights; unpack it first")
    return _read_torch(path)


def _read_tensorflow(path: Path) -> dict[str, Any]:
    stem = path.with_suffix("")

    def shard(number: int, count: int) -> bytes:
        return Path(_shard(str(stem), number, count)).read_bytes()

    try:
        return _tensors_of(path.read_bytes(), shard)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is a TensorFlow index, but {Path(error.filename).name} is not beside it"
        ) from error
    except Exception as error:
        raise UserError(f"{path} is truncated or damaged: {first_line(error)}") from error


def _tensors_of(index: bytes, shard: Callable[[int, int], bytes]) -> dict[str, Any]:
    arrays, others = tensorflow.read_checkpoint(index, shard)
    return {**arrays, **dict.fromkeys(others)}


def _shard(stem: str, number: int, count: int) -> str:
    return f"{stem}.data-{number:05d}-of-{count:05d}"


def _read_torch(path: Path) -> Any:
    """What `torch.save` wrote; classes that are not torch's own become inert marks."""
    names = sorted(set(_globals(path)))
    if found := next(filter(is_hostile, names), None):
        raise hostile(path, found)
    marks: list[Any] = [(type("_Mark", (_Mark,), {"code": name}), name) for name in names]
    try:
        # torch warns of pickle versions before it refuses the file; the refusal is enough. By a
        # path, it would go by the name's ending.
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(marks),
            path.open("rb") as file,
        ):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The message of torch advises to load without protection; ours must not.
        raise UserError(
            f"{path} is not a plain weights file: it is damaged, of a pickle protocol above 2, or "
            "names code, which is never executed; save a state dict of tensors or use safetensors"
        ) from error
    # The reader of old files meets damage with whatever its bytes lead to (struct.error,
    # AssertionError, UnicodeDecodeError ...).
    except Exception as error:
        raise UserError(f"{path} is truncated or damaged: {first_line(error)}") from error


class _Mark(dict[Any, Any]):
    """Stands for an object of a class that is not imported; takes anything and does nothing."""

    code = ""

    def __new__(cls, *_: Any, **__: Any) -> _Mark:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass


def _globals(path: Path) -> Iterator[str]:
    """Yield the names in a torch file's pickles, as far as they can be read."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                yield from _named(io.BytesIO(archive.read(inner)))
        else:
            # The magic number, a version, the system's sizes, then the object.
            with path.open("rb") as file:
                for _ in range(4):
                    yield from _named(file)
    # Damage is told by the reader proper, which meets it next.
    except Exception:
        return


def _named(file: Any) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".", 1)


def _flatten(path: Path, value: Any) -> Content:
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    seen = 0
    while waiting:
        name, part, depth = waiting.pop()
        seen += 1
        if seen > _MOST or depth > _DEEPEST:
            raise UserError(f"{path} nests its entries too deep or has too many to be weights")
        if isinstance(part, np.ndarray) and part.dtype.kind in "fiub":
            native = part.dtype.newbyteorder("=")
            part = torch.from_numpy(part.astype(native, copy=not part.flags.writeable))
        if isinstance(part, Tensor):
            if not name:
                break
            if part.layout is not torch.strided or part.is_quantized:
                raise UserError(
                    f"{path}: '{name}' is a sparse or quantized tensor, not a plain one"
                )
            clean = _clean(name)
            if clean in tensors:
                raise UserError(
                    f"{path} holds '{clean.rpartition('/')[2]}' twice, with and without the prefix "
                    "of a wrapped network; keep one of them"
                )
            tensors[clean] = part
            continue
        if isinstance(part, Named | _Mark):
            others[name or "."] = part.code
        if inner := _inner(part):
            prefix = f"{name}/" if name else ""
            # The stack is read from its end: reversed, so that names keep the file's order.
            waiting.extend((f"{prefix}{k}", v, depth + 1) for k, v in reversed(list(inner.items())))
        elif name and name not in others:
            others[name] = type(part).__name__
    return Content(tensors, others)


def _inner(part: Any) -> Mapping[Any, Any]:
    """The named parts of a container; of one mapping inside a class, that mapping's."""
    if isinstance(part, Mapping):
        return part
    if isinstance(part, Named):
        held = part.arguments or (part.state,)
        if len(held) == 1 and isinstance(held[0], Mapping):
            return held[0]
        return dict(enumerate(part.arguments))
    return dict(enumerate(part)) if isinstance(part, tuple) else {}


def _clean(name: str) -> str:
    """Take what wraps a network off the names of its weights."""
    container, slash, key = name.rpartition("/")
    while key.startswith(_WRAPPERS):
        key = key.split(".", 1)[1]
    return f"{container}{slash}{key.replace('._orig_mod.', '.')}"
