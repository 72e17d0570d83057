"""TensorFlow's checkpoints (format V2) as arrays, read without TensorFlow.

`NAME.index` is a sorted table of leveldb's form: names to entries, which say where in
`NAME.data-00000-of-00001` a tensor lies (tensorflow: core/util/tensor_bundle, core/lib/io/table).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER = 48
_TRAILER = 5  # one byte of compression, four of a checksum
_NUMBERS = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}

Arrays = dict[str, NDArray[np.generic]]


def read_checkpoint(index: bytes, shard: Callable[[int, int], bytes]) -> tuple[Arrays, list[str]]:
    """Read a checkpoint.

    Parameters
    ----------
    index : bytes
        Content of the `.index` file.
    shard : callable
        (number, count) to the content of that data file.

    Returns
    -------
    dict of arrays, list of str
        Tensors of numbers by name; the names of what else there is.

    Raises
    ------
    ValueError
        If the table or the data file is truncated, damaged or compressed.
    """
    if len(index) < _FOOTER or index[-8:] != MAGIC:
        raise ValueError("the index does not end as a table does")
    _, _, place = _handle(index, len(index) - _FOOTER)
    start, size, _ = _handle(index, place)
    entries: dict[str, bytes] = {}
    for _, value in _block(index, start, size):
        inner_start, inner_size, _ = _handle(value, 0)
        for key, entry in _block(index, inner_start, inner_size):
            entries[key.decode()] = entry
    header = dict(_fields(entries.pop("", b"")))
    shards = _number(header.get(1, 1))
    files = {number: shard(number, shards) for number in range(shards)}
    arrays: Arrays = {}
    others = []
    for name, entry in entries.items():
        found = dict(_fields(entry))
        kind = _NUMBERS.get(_number(found.get(1, 0)))
        if kind is None:
            others.append(name)
            continue
        sizes = tuple(
            _number(dict(_fields(dim)).get(1, 0))
            for number, dim in _fields(_bytes(found.get(2, b"")))
            if number == 2 and isinstance(dim, bytes)
        )
        offset, length = _number(found.get(4, 0)), _number(found.get(5, 0))
        data = files[_number(found.get(3, 0))][offset : offset + length]
        if len(data) != length or math.prod(sizes) * np.dtype(kind).itemsize != length:
            raise ValueError(f"'{name}' of shape {sizes} does not have {len(data)} bytes")
        arrays[name] = np.frombuffer(data, dtype=kind).reshape(sizes)
    return arrays, others


def _block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block; a key shares its beginning with the one before."""
    block = table[start : start + size]
    if len(block) != size or start + size + _TRAILER > len(table):
        raise ValueError("a block lies outside the index")
    if table[start + size] != 0:
        raise ValueError("the index is compressed")
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 * (restarts + 1)
    key, place = b"", 0
    while place < end:
        shared, place = _varint(block, place)
        fresh, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + fresh]
        place += fresh
        yield key, block[place : place + length]
        place += length


def _handle(data: bytes, place: int) -> tuple[int, int, int]:
    """Return offset and size of a block, and where the next handle begins."""
    start, place = _varint(data, place)
    size, place = _varint(data, place)
    return start, size, place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number in the index has no end")


def _fields(message: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protocol buffer: their numbers and raw values."""
    data, place = _bytes(message), 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("an entry of the index is damaged")
        if place + length > len(data):
            raise ValueError("an entry of the index is cut short")
        yield tag >> 3, data[place : place + length]
        place += length


def _number(value: int | bytes) -> int:
    return value if isinstance(value, int) else int.from_bytes(value, "little")


def _bytes(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else b""
