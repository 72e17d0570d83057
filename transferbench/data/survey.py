"""The first look at every image of a split: which are corrupt, their size, what repeats.

It decodes each image once. Where it is known at which size a network will ask for them, the same
decoding fills the cache of pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from transferbench.data.dataset import PIXELS_VERSION, Images, StoredImage, Wanted
from transferbench.data.images import (
    CorruptImage,
    Pixels,
    ahead,
    fit,
    open_pixels,
    pixels_file,
    write_header,
)
from transferbench.progress import Progress
from transferbench.storage import cache_folder, digest, write_atomic

# Raised when a survey notes more than before.
VERSION = 2

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Survey:
    """What decoding every image of a split once has shown.

    Attributes
    ----------
    count : int
        Number of images.
    native_size : int or None
        Side if the sound images are equally large squares.
    corrupt : tuple of (position, where, reason)
        Those that cannot be decoded.
    hashes : array (count,) uint64
        Of each image's pixels: equal images have equal ones, and others hardly ever. 0 for a
        corrupt one.
    """

    count: int
    native_size: int | None
    corrupt: tuple[tuple[int, str, str], ...]
    hashes: Hashes


class _Spoiled(Exception):
    """Pixels with a gap, which are not to be kept."""


def survey(
    images: Images,
    fingerprint: str,
    title: str,
    progress: Progress,
    wanted: Wanted | None = None,
) -> Survey:
    """Decode every image once, or recall what that gave for the same content.

    Parameters
    ----------
    fingerprint : str
        Of the stored content; the key under which the result is remembered.
    wanted : Wanted, optional
        At which pixels are kept as well, if the images have to be decoded.

    Raises
    ------
    UserError
        If the cache cannot be written to, as on a full disk; nothing is remembered then.
    """
    key = digest([PIXELS_VERSION, VERSION, fingerprint])
    known, beside = (cache_folder("surveys") / f"{key}{end}" for end in (".json", ".npy"))
    found = _recall(known, beside, len(images))
    if found is not None:
        return found
    walk = _Walk(images, title, progress)
    path = None
    if wanted is not None:
        path = pixels_file(fingerprint, wanted.size, wanted.interpolation)
        if open_pixels(path, (len(images), wanted.size, wanted.size, 3)) is not None:
            path = None
    if wanted is None or path is None:
        found = walk.look(None, None)
    else:
        results: list[Survey] = []

        def build(file: IO[bytes]) -> None:
            results.append(walk.look(file, wanted))
            if results[-1].corrupt:
                raise _Spoiled

        try:
            write_atomic(path, build)
        except _Spoiled:
            path = None
        found = results[-1]
        if path is not None and found.native_size == wanted.size:
            os.replace(path, pixels_file(fingerprint, wanted.size, "native"))
    hashes = found.hashes
    write_atomic(beside, lambda file: np.save(file, hashes))
    note = {"count": found.count, "native_size": found.native_size, "corrupt": found.corrupt}
    write_atomic(known, json.dumps(note))
    return found


def _recall(known: Path, beside: Path, count: int) -> Survey | None:
    try:
        values = json.loads(known.read_text())
        corrupt = tuple((int(i), str(where), str(why)) for i, where, why in values["corrupt"])
        size = values["native_size"]
        hashes = np.load(beside, allow_pickle=False)
        found = Survey(int(values["count"]), None if size is None else int(size), corrupt, hashes)
    # The header of an array is parsed as Python text: damage meets many kinds of exception.
    except Exception:
        return None
    sound = hashes.shape == (count,) and hashes.dtype == np.uint64
    return found if sound and found.count == count else None


@dataclass(frozen=True)
class _Walk:
    images: Images
    title: str
    progress: Progress

    def look(self, file: IO[bytes] | None, wanted: Wanted | None) -> Survey:
        """Open every image; write the wanted pixels to `file` as long as all were sound."""
        count = len(self.images)
        hashes = np.zeros(count, np.uint64)
        sizes: set[tuple[int, int]] = set()
        corrupt: list[tuple[int, str, str]] = []
        if file is not None and wanted is not None:
            write_header(file, (count, wanted.size, wanted.size, 3))

        def seen(image: StoredImage) -> tuple[tuple[int, int], int, Pixels | None] | str:
            try:
                opened = image.open()
            except CorruptImage as error:
                return str(error)
            mark = hashlib.sha256(repr(opened.size).encode() + opened.tobytes()).digest()
            pixels = None if wanted is None else fit(opened, wanted.size, wanted.interpolation)
            return opened.size, int.from_bytes(mark[:8], "little"), pixels

        with self.progress.task(f"checking {self.title}", count, "images") as task:
            for position, (image, result) in enumerate(ahead(seen, self.images)):
                if isinstance(result, str):
                    corrupt.append((position, image.where, result))
                else:
                    size, hashes[position], pixels = result
                    sizes.add(size)
                    if file is not None and pixels is not None and not corrupt:
                        file.write(pixels.tobytes())
                task.advance()
        square = len(sizes) == 1 and len(set(*sizes)) == 1
        native = sizes.pop()[0] if square else None
        return Survey(count, native, tuple(corrupt), hashes)
