"""Stored images to uint8 pixels: decoding to RGB, and the pixel cache.

Every file that a person may hand over ends in 8-bit RGB:

- greyscale, CMYK, YCbCr and palette images are converted;
- transparent pixels are laid on white (`BACKGROUND`), whatever colour hides below them;
- 16-bit values are scaled by 255/65535, not clipped;
- an animation gives its first frame; an EXIF rotation is left alone, as in torchvision.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from mmap import mmap
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from transferbench.data.dataset import PIXELS_VERSION, Interpolation, Split, StoredImage
from transferbench.errors import UserError
from transferbench.progress import SILENT, Progress
from transferbench.storage import cache_folder, digest, write_atomic

Pixels = npt.NDArray[np.uint8]

# Formats that only read pixels; Pillow's EPS reader, for one, starts a program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
BACKGROUND = (255, 255, 255)
# Images under way: so many a thread, and so many bytes of files at most.
IN_FLIGHT = 8
HELD_BYTES = 64 * 2**20
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
    path = pixels_file(split.fingerprint, size, "native" if size == native else interpolation)
    shape = (len(split), size, size, 3)
    found = open_pixels(path, shape)
    if found is None:
        # Small native pixels are kept too, so that further sizes need no second decoding.
        images: Iterable[StoredImage] = split.images
        if native is not None and size != native and native <= 64:
            pixels = cached_pixels(split, native, interpolation, progress)
            images = (ArrayImage("", row) for row in pixels)
        write_atomic(
            path, lambda file: _build(file, images, shape, fit, interpolation, split, progress)
        )
        found = open_pixels(path, shape)
    assert found is not None, f"{path} cannot be read back"
    return found


def pixels_file(fingerprint: str, size: int, how: str) -> Path:
    """Return where the pixels of a split are kept; `how` is the interpolation, or "native"."""
    key = digest([PIXELS_VERSION, fingerprint, size, how])
    return cache_folder("pixels") / f"{key[:32]}.npy"


def open_pixels(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Open a file of the cache; None if it is absent, cut short or no such pixels."""
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
        pixels = split.pixels(size, interpolation=interpolation, progress=progress)
        return pixels, np.full((len(split), 2), split.native_size)
    key = digest([PIXELS_VERSION, split.fingerprint, size, interpolation, "whole"])[:32]
    path, beside = (cache_folder("pixels") / f"{key}{end}" for end in (".npy", "-sides.npy"))
    shape = (len(split), size, size, 3)
    found, sides = open_pixels(path, shape), _open_sides(beside, len(split))
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
        found = open_pixels(path, shape)
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
    write_header(file, shape)
    count, size = shape[:2]

    def row(image: StoredImage) -> tuple[Pixels, tuple[int, int]]:
        try:
            opened = image.open()
        except CorruptImage as error:
            raise UserError(f"{image.where} is corrupt ({error}); it was sound before") from error
        return make(opened, size, interpolation), (opened.height, opened.width)

    sides = []
    with progress.task(f"decoding {split.name} at {size} px", count, "images") as task:
        for _, (pixels, before) in ahead(row, images):
            file.write(pixels.tobytes())
            sides.append(before)
            task.advance()
    assert len(sides) == count, f"{len(sides)} images came from a split of {count}"
    return sides


def write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Begin a file of the cache; the pixels follow row by row."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def rows(pixels: Pixels, start: int, stop: int) -> Pixels:
    """Return a copy of some rows of cached pixels, read so that they do not stay mapped.

    Pages of a mapped file count as the process's memory as long as nobody needs them more.
    """
    count = min(stop, len(pixels)) - start
    # A part of a mapping does not know where in the file it begins.
    if isinstance(pixels, np.memmap) and pixels.filename and _maps_a_file(pixels):
        count = max(0, min(stop, len(pixels)) - start)
        length = int(np.prod(pixels.shape[1:]))
        with suppress(OSError):
            place = pixels.offset + start * length
            read = np.fromfile(pixels.filename, np.uint8, count * length, offset=place)
            if len(read) == count * length:
                return read.reshape(-1, *pixels.shape[1:])
    return np.array(pixels[start:stop])


def _maps_a_file(pixels: Pixels) -> bool:
    base: object = pixels.base
    return isinstance(base, mmap)


Result = TypeVar("Result")


def ahead(
    function: Callable[[StoredImage], Result], images: Iterable[StoredImage]
) -> Iterator[tuple[StoredImage, Result]]:
    """Map over threads, in order; Pillow decodes and resizes outside the interpreter lock.

    Few images are under way at a time, and fewer still where their files are large, so that
    memory does not grow with their number.
    """
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    walk = iter(images)
    first = next(walk, None)
    if first is None:
        return
    everything = chain([first], walk)
    if workers == 1 or (isinstance(first, ArrayImage) and first.pixels.size < 10_000):
        yield from ((image, function(image)) for image in everything)
        return
    waiting: deque[tuple[StoredImage, Future[Result]]] = deque()
    held = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for image in everything:
                waiting.append((image, pool.submit(function, image)))
                held += _weight(image)
                while len(waiting) > IN_FLIGHT * workers or (held > HELD_BYTES and waiting):
                    done, future = waiting.popleft()
                    held -= _weight(done)
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _weight(image: StoredImage) -> int:
    """Bytes that an image holds before it is opened."""
    data = getattr(image, "data", None)
    return len(data) if isinstance(data, bytes) else 0
