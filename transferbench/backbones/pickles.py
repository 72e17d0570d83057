"""Plain pickles as data: arrays, numbers, texts and containers; no name in one is ever looked up.

What the standard library's reader would import and call stays a `Named`, with its arguments beside
it. Arrays of numpy (also those that jax wraps) are put together here, from their shape, type and
bytes.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from transferbench.errors import UserError

_RECONSTRUCT = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
_SCALAR = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
_FROMBUFFER = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
_PUSHES_NOTHING_KNOWN = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MAKERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_HOSTILE = {"ctypes", "importlib", "nt", "os", "posix", "pty", "runpy", "shutil", "socket",
            "subprocess", "sys"}  # fmt: skip
_BUILTINS = {"__import__", "apply", "compile", "eval", "exec", "execfile", "file", "input", "open"}
_FILES = {"FileIO", "open", "open_code"}
_HOSTILE_NAMES = {"builtins": _BUILTINS, "__builtin__": _BUILTINS, "io": _FILES, "_io": _FILES}


@dataclass(eq=False)
class Named:
    """Something that a pickle names: a class or function, or what calling it would have given.

    Attributes
    ----------
    code : str
        E.g. "haiku._src.data_structures.frozendict"; never imported.
    arguments : tuple
        What it would have been called with; empty for the bare name.
    state : object
        What would have been set on the result.
    entries : list
        What would have been put into the result: items, or pairs of key and value.
    """

    code: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    entries: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class _Unfilled:
    """An array whose shape and bytes come with the next BUILD."""

    array: np.ndarray[Any, Any] | None = None


@dataclass(eq=False)
class _Type:
    """A numpy type code such as "f4", and its byte order."""

    code: str
    order: str = "<"

    def numpy(self) -> np.dtype[Any]:
        if self.code[:1] not in "fiub" or not self.code[1:].isdecimal():
            raise ValueError(f"arrays of the type '{self.code}' hold no plain numbers")
        return np.dtype(f"{self.order if self.order in '<>' else '='}{self.code}")


class _Mark:
    pass


class _HostileError(Exception):
    """A pickle names what only an attack would call."""


def is_hostile(code: str) -> bool:
    """Return whether no honest weights file would name this, e.g. "posix.system".

    Nothing that a file names is imported; but who was handed such a file should know.
    """
    module, _, rest = code.partition(".")
    return module in _HOSTILE or rest in _HOSTILE_NAMES.get(module, ())


def hostile(path: Path, code: str) -> UserError:
    """Return the refusal of a file that names such code."""
    return UserError(
        f"{path} names code ({code}), which is never executed and which no weights file needs; "
        "delete it, and take the weights as safetensors or from their authors"
    )


def read_pickle(path: Path) -> Any:
    """Read a plain pickle as data.

    Parameters
    ----------
    path : Path
        What `pickle.dump` or `dill.dump` wrote, protocols 0 to 5.

    Returns
    -------
    object
        Dictionaries, lists, tuples, texts, numbers, arrays, and `Named` for all else.

    Raises
    ------
    UserError
        If the file is truncated or damaged, refers to something outside itself, or names what
        only an attack would call.
    """
    try:
        with path.open("rb") as file:
            return _settle(_Machine().run(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except _HostileError as error:
        raise hostile(path, str(error)) from error
    # Damage shows as whatever its bytes lead to: values that are missing, of other kinds, too long.
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path} is truncated or damaged: {said}") from error


class _Machine:
    """The stack machine that a pickle is a program for, without its imports and calls."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("it does not end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _MAKERS:
            stack.append(_MAKERS[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._above_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _PUSHES_NOTHING_KNOWN:
            raise ValueError("it refers to something outside the file")
        elif name == "READONLY_BUFFER":
            return
        elif not self._collect(name) and not self._name(name, argument):
            assert argument is not None, name
            stack.append(argument)

    def _collect(self, name: str) -> bool:
        """Containers: made of, or filled with, what stands above the mark."""
        stack = self.stack
        if name in ("LIST", "TUPLE", "FROZENSET", "DICT"):
            items = self._above_mark()
            kinds: dict[str, Any] = {"LIST": list, "TUPLE": tuple, "FROZENSET": frozenset}
            stack.append(_pairs(items) if name == "DICT" else kinds[name](items))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._above_mark()
            target = stack[-1]
            if isinstance(target, set):
                target.update(items)
            else:
                _entries(target).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [*stack[-2:]] if name == "SETITEM" else self._above_mark()
            if name == "SETITEM":
                del stack[-2:]
            target = stack[-1]
            if isinstance(target, dict):
                target.update(_pairs(items))
            else:
                _entries(target).extend(_pairs(items).items())
        else:
            return False
        return True

    def _name(self, name: str, argument: Any) -> bool:
        """Names, and what would be made by calling them."""
        stack = self.stack
        if name == "GLOBAL":
            stack.append(_named(str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_named(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, tuple(arguments)))
        elif name == "NEWOBJ_EX":
            keywords, arguments, function = stack.pop(), stack.pop(), stack.pop()
            stack.append(_made(function, (*arguments, *([keywords] if keywords else []))))
        elif name in ("INST", "OBJ"):
            items = self._above_mark()
            place = str(argument).replace(" ", ".", 1)
            function = _named(place) if name == "INST" else items.pop(0)
            stack.append(_made(function, tuple(items)))
        elif name == "BUILD":
            state = stack.pop()
            _fill(stack[-1], state)
        else:
            return False
        return True

    def _above_mark(self) -> list[Any]:
        place = max(i for i, value in enumerate(self.stack) if isinstance(value, _Mark))
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items


def _named(code: str) -> Named:
    if is_hostile(code):
        raise _HostileError(code)
    return Named(code)


def _made(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What a call would have given: an array or a container of numpy's, else a `Named`."""
    code = function.code if isinstance(function, Named) and not function.arguments else ""
    if code in _RECONSTRUCT:
        return _Unfilled()
    if code == "numpy.dtype":
        return _Type(str(arguments[0]))
    if code in _SCALAR:
        return _array(arguments[0], (), arguments[1], fortran=False)
    if code in _FROMBUFFER:
        data, kind, shape, *order = arguments
        return _array(kind, shape, data, fortran=order[:1] == ["F"])
    if code == "_codecs.encode":
        # How protocol 2 spells bytes.
        return str(arguments[0]).encode("latin-1")
    if code == "collections.OrderedDict" and not arguments:
        return {}
    if code.startswith("jax") and len(arguments) >= 3 and _is_reconstruct(arguments[0]):
        # jax wraps (function, arguments, state) of the numpy array.
        wrapped = _Unfilled()
        _fill(wrapped, arguments[2])
        return wrapped
    return Named(code or "a value of the pickle", arguments)


def _is_reconstruct(value: Any) -> bool:
    return isinstance(value, Named) and value.code in _RECONSTRUCT


def _fill(target: Any, state: Any) -> None:
    if isinstance(target, _Unfilled):
        _, shape, kind, fortran, data = state
        target.array = _array(kind, shape, data, fortran=bool(fortran))
    elif isinstance(target, _Type):
        target.order = str(state[1])
    elif isinstance(target, Named):
        target.state = state


def _array(kind: Any, shape: Any, data: Any, *, fortran: bool) -> np.ndarray[Any, Any]:
    if not isinstance(kind, _Type):
        raise ValueError("an array's type is not numpy's")
    dtype, sizes = kind.numpy(), tuple(int(side) for side in shape)
    raw = data.encode("latin-1") if isinstance(data, str) else bytes(data)
    if min(sizes, default=0) < 0 or math.prod(sizes) * dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {sizes} does not have {len(raw)} bytes")
    return np.frombuffer(raw, dtype=dtype).reshape(sizes, order="F" if fortran else "C")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _entries(target: Any) -> list[Any]:
    if isinstance(target, Named):
        return target.entries
    if not isinstance(target, list):
        raise ValueError(f"items for a {type(target).__name__}")
    return target


def _settle(value: Any) -> Any:
    """Put the finished arrays where their shells stand; shared parts are visited once."""
    seen: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, dict):
            part.update({k: _ready(v) for k, v in part.items()})
            waiting.extend(part.values())
        elif isinstance(part, list):
            part[:] = [_ready(v) for v in part]
            waiting.extend(part)
        elif isinstance(part, tuple):
            waiting.extend(part)
        elif isinstance(part, Named):
            part.arguments = tuple(_ready(v) for v in part.arguments)
            part.entries = [_ready(v) for v in part.entries]
            part.state = _ready(part.state)
            waiting.extend((*part.arguments, *part.entries, part.state))
    return _ready(value)


def _ready(value: Any) -> Any:
    return value.array if isinstance(value, _Unfilled) else value
