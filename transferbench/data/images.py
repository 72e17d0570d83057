"""Stored images to uint8 pixels: decoding to RGB, the check for corrupt ones, the pixel cache.

Every file that a person may hand over ends in 8-bit RGB:

- greyscale, CMYK, YCbCr and palette images are converted;
- transparent pixels are laid on white (`BACKGROUND`), whatever colour hides below them;
- 16-bit values are scaled by 255/65535, not clipped;
- an animation gives its first frame; an EXIF rotation is left alone, as in torchvision.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from transferbench.data.dataset import PIXELS_VERSION, Images, Interpolation, Split, StoredImage
from transferbench.errors import UserError
from transferbench.progress import SILENT, Progress
from transferbench.storage import cache_folder, digest, write_atomic

Pixels = npt.NDArray[np.uint8]

# Formats that only read pixels; Pillow's EPS reader, for one, starts a program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
BACKGROUND = (255, 255, 255)
CHUNK_BYTES = 32 * 2**20
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class CorruptImage(Exception):
    """An image that cannot be decoded, with the reason."""


@dataclass(frozen=True)
class EncodedImage:
    """Bytes of an image file, or its path, read when it is opened."""

    where: str
    data: bytes | Path | None

    def open(self) -> Image.Image:
        """Decode to RGB; raises `CorruptImage`."""
        if isinstance(self.data, Path):
            try:
                return decode(self.data.read_bytes())
            except OSError as error:
                raise UserError(f"cannot read {self.data}: {error.strerror or error}") from error
        if self.data is None:
            raise CorruptImage("no bytes are stored")
        return decode(self.data)


@dataclass(frozen=True)
class ArrayImage:
    """An image that is at hand as an array (H, W, 3)."""

    where: str
    pixels: Pixels

    def open(self) -> Image.Image:
        """Return the pixels as a PIL image."""
        return Image.fromarray(self.pixels)


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of one image file to RGB.

    Raises
    ------
    CorruptImage
        If they are empty, cut short, of an unknown format, or of a kind without a fixed range
        (32-bit integers above 65535, floating point).
    """
    if not data:
        raise CorruptImage("zero bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return to_rgb(image)
    except CorruptImage:
        raise
    except UnidentifiedImageError:
        raise CorruptImage("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise CorruptImage("more pixels than a picture has") from None
    except Exception as error:
        # Decoders meet hostile bytes with any exception there is (struct.error, SyntaxError ...).
        raise CorruptImage(str(error) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB as the module says."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise CorruptImage("32-bit integers have no fixed range to convert from")
        grey = np.rint(values * (255 / 65535)).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise CorruptImage("floating-point pixels have no fixed range to convert from")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        straight = image.convert(premultiplied) if premultiplied else image
        return Image.alpha_composite(canvas, straight.convert("RGBA")).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def fit(image: Image.Image, size: int, interpolation: Interpolation) -> Pixels:
    """Resize the shorter side to `size` and cut out the centre; uint8 (size, size, 3).

    Sizes and offsets are rounded as torchvision's Resize and CenterCrop do on PIL images.
    """
    width, height = image.size
    if max(width, height) > 16 * min(width, height):
        # A strip would be resized to a huge picture of which only the centre is kept.
        keep = 16 * min(width, height)
        left, top = max(0, (width - keep) // 2), max(0, (height - keep) // 2)
        image = image.crop((left, top, min(width, left + keep), min(height, top + keep)))
        width, height = image.size
    if min(width, height) != size:
        short = min(width, height)
        # One side is exact: size * short / short has no rounding error.
        target = (int(size * width / short), int(size * height / short))
        image = image.resize(target, FILTERS[interpolation])
        width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


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
    """

    count: int
    native_size: int | None
    corrupt: tuple[tuple[int, str, str], ...]


def survey(images: Images, fingerprint: str, title: str, progress: Progress) -> Survey:
    """Decode every image once, or recall what that gave for the same content.

    Parameters
    ----------
    fingerprint : str
        Of the stored content; the key under which the result is remembered.
    """
    known = cache_folder("surveys") / f"{digest([PIXELS_VERSION, fingerprint])}.json"
    found = _recall(known, len(images))
    if found is None:
        sizes: set[tuple[int, int]] = set()
        corrupt: list[tuple[int, str, str]] = []
        with progress.task(f"checking {title}", len(images), "images") as task:
            position = 0
            for chunk in _chunks(images, 256):
                for image, result in zip(chunk, _parallel(_size_or_reason, chunk), strict=True):
                    if isinstance(result, str):
                        corrupt.append((position, image.where, result))
                    else:
                        sizes.add(result)
                    position += 1
                task.advance(len(chunk))
        square = len(sizes) == 1 and len(set(*sizes)) == 1
        found = Survey(len(images), sizes.pop()[0] if square else None, tuple(corrupt))
        write_atomic(known, json.dumps(found.__dict__))
    return found


def _recall(known: Path, count: int) -> Survey | None:
    try:
        values = json.loads(known.read_text())
        corrupt = tuple((int(i), str(where), str(why)) for i, where, why in values["corrupt"])
        size = values["native_size"]
        found = Survey(int(values["count"]), None if size is None else int(size), corrupt)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.count == count else None


def _size_or_reason(image: StoredImage) -> tuple[int, int] | str:
    try:
        return image.open().size
    except CorruptImage as error:
        return str(error)


def cached_pixels(
    split: Split, size: int | None, interpolation: Interpolation, progress: Progress
) -> Pixels:
    """Return `Split.pixels`: open the cache file, or build it.

    A file of another length than its header promises is built anew. Two processes that build the
    same file each write their own and rename it; the last one wins with equal content.
    """
    native = split.native_size
    if size is None:
        if native is None:
            raise UserError(
                f"the images of the split '{split.name}' differ in size or are not square; "
                "give a size in pixels"
            )
        size = native
    if size < 1:
        raise UserError(f"an image size of {size} pixels is not possible; 1 is the least")
    how = "native" if size == native else interpolation
    key = digest([PIXELS_VERSION, split.fingerprint, size, how])
    path = cache_folder("pixels") / f"{key[:32]}.npy"
    shape = (len(split), size, size, 3)
    found = _open_cached(path, shape)
    if found is None:
        # Small native pixels are kept too, so that further sizes need no second decoding.
        images: Iterable[StoredImage] = split.images
        if native is not None and size != native and native <= 64:
            pixels = cached_pixels(split, native, interpolation, progress)
            images = (ArrayImage("", row) for row in pixels)
        write_atomic(
            path, lambda file: _build(file, images, shape, fit, interpolation, split, progress)
        )
        found = _open_cached(path, shape)
    assert found is not None, f"{path} cannot be read back"
    return found


def _open_cached(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        whole = path.stat().st_size == getattr(array, "offset", -1) + int(np.prod(shape))
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    sound = isinstance(array, np.memmap) and array.dtype == np.uint8 and array.shape == shape
    return array if sound and whole and array.flags.c_contiguous else None


def whole_pixels(
    split: Split,
    size: int,
    *,
    interpolation: Interpolation = "bicubic",
    progress: Progress = SILENT,
) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Return all of every image, its sides squashed to `size` pixels each, from the cache.

    Returns
    -------
    pixels : array (N, size, size, 3) uint8
        Memory-mapped and read-only.
    sides : array (N, 2) int64
        Height and width before, by which a cut can be given its true shape.
    """
    if split.native_size is not None:
        # A square is not squashed: these are the pixels of any other use.
        pixels = cached_pixels(split, size, interpolation, progress)
        return pixels, np.full((len(split), 2), split.native_size)
    key = digest([PIXELS_VERSION, split.fingerprint, size, interpolation, "whole"])[:32]
    path, beside = (cache_folder("pixels") / f"{key}{end}" for end in (".npy", "-sides.npy"))
    shape = (len(split), size, size, 3)
    found, sides = _open_cached(path, shape), _open_sides(beside, len(split))
    if found is None or sides is None:
        measured: list[tuple[int, int]] = []

        def build(file: IO[bytes]) -> None:
            measured.clear()
            measured.extend(
                _build(file, split.images, shape, squash, interpolation, split, progress)
            )

        write_atomic(path, build)
        sides = np.array(measured, np.int64)
        kept = sides
        write_atomic(beside, lambda file: np.save(file, kept))
        found = _open_cached(path, shape)
    assert found is not None, f"{path} cannot be read back"
    return found, sides


def squash(image: Image.Image, size: int, interpolation: Interpolation) -> Pixels:
    """Resize both sides to `size`, whatever that does to the shape; uint8 (size, size, 3)."""
    return np.asarray(image.resize((size, size), FILTERS[interpolation]))


def _open_sides(path: Path, count: int) -> npt.NDArray[np.int64] | None:
    try:
        sides = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    sound = sides.shape == (count, 2) and sides.dtype == np.int64 and (sides > 0).all()
    return sides if sound else None


def _build(
    file: IO[bytes],
    images: Iterable[StoredImage],
    shape: tuple[int, int, int, int],
    make: Callable[[Image.Image, int, Interpolation], Pixels],
    interpolation: Interpolation,
    split: Split,
    progress: Progress,
) -> list[tuple[int, int]]:
    """Write the pixels that `make` gives of each image; return their heights and widths before."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    count, size = shape[:2]

    def row(image: StoredImage) -> tuple[Pixels, tuple[int, int]]:
        try:
            opened = image.open()
        except CorruptImage as error:
            raise UserError(f"{image.where} is corrupt ({error}); it was sound before") from error
        return make(opened, size, interpolation), (opened.height, opened.width)

    sides = []
    with progress.task(f"decoding {split.name} at {size} px", count, "images") as task:
        for chunk in _chunks(images, max(8, min(1024, CHUNK_BYTES // (size * size * 3)))):
            for pixels, before in _parallel(row, chunk):
                file.write(pixels.tobytes())
                sides.append(before)
            task.advance(len(chunk))
    assert len(sides) == count, f"{len(sides)} images came from a split of {count}"
    return sides


def _chunks(images: Iterable[StoredImage], length: int) -> Iterator[list[StoredImage]]:
    walk = iter(images)
    while chunk := list(islice(walk, length)):
        yield chunk


def _parallel(function: Callable[[StoredImage], Any], chunk: list[StoredImage]) -> Iterator[Any]:
    """Map over threads, in order; Pillow decodes and resizes outside the interpreter lock."""
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    if workers == 1 or (isinstance(chunk[0], ArrayImage) and chunk[0].pixels.size < 10_000):
        yield from map(function, chunk)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, chunk)
