from __future__ import annotations

import errno
import io
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.data.makers import picture, png
from transferbench.data import images as room
from transferbench.data.dataset import Split, Wanted
from transferbench.data.images import (
    ArrayImage,
    CorruptImage,
    EncodedImage,
    decode,
    fit,
    rows,
)
from transferbench.data.survey import survey
from transferbench.errors import UserError
from transferbench.progress import SILENT


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_greyscale_fills_three_channels() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = rgb(encoded(Image.fromarray(grey), "PNG"))
    assert (found == grey[..., None]).all()


def test_black_and_white() -> None:
    image = Image.new("1", (4, 4), 1)
    assert (rgb(encoded(image, "PNG")) == 255).all()


def test_cmyk_becomes_its_rgb() -> None:
    # No cyan, all magenta and yellow: red.
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = rgb(encoded(image, "TIFF"))
    assert (found == (255, 0, 0)).all()
    lossy = rgb(encoded(image, "JPEG", quality=95)).astype(int)
    assert np.abs(lossy - (255, 0, 0)).max() < 12


def test_palette_is_looked_up() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert rgb(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    found = rgb(encoded(image, "PNG", transparency=1))
    assert found.tolist() == [[[10, 20, 30], [255, 255, 255]]]
    found = rgb(encoded(image, "GIF", transparency=0))
    assert found[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 51), (204, 204, 204)),
    ],
)
def test_alpha_is_laid_on_white(mode: str, color: tuple[int, ...], expected: object) -> None:
    found = rgb(encoded(Image.new(mode, (3, 3), color), "PNG"))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_transparent_color_of_an_rgb_file_is_white() -> None:
    image = Image.new("RGB", (2, 1), (9, 9, 9))
    image.putpixel((1, 0), (1, 2, 3))
    found = rgb(encoded(image, "PNG", transparency=(1, 2, 3)))
    assert found.tolist() == [[[9, 9, 9], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    found = rgb(encoded(Image.fromarray(values), kind))
    assert found[0, :, 0].tolist() == [0, 1, 1, 128, 255]
    assert (found == found[..., :1]).all()


def test_ranges_that_nobody_knows_are_refused() -> None:
    with pytest.raises(CorruptImage, match="floating-point"):
        decode(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))
    with pytest.raises(CorruptImage, match="32-bit"):
        decode(encoded(Image.new("I", (2, 2), 70000), "TIFF"))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (rgb(data) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"not an image at all", "not an image"),
        (encoded(picture(0, 40, 40), "JPEG")[:-200], "truncated"),
        (png(picture(0))[:-30], "."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "postscript is never run"],
)
def test_corrupt_bytes(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptImage, match=reason):
        decode(data)


def test_a_bomb_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(CorruptImage, match="more pixels"):
        decode(png(picture(0)))


def test_a_broken_header_is_corrupt() -> None:
    chunk = PngImagePlugin.putchunk
    buffer = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    buffer.seek(8)
    chunk(buffer, b"IHDR", b"\0\0")
    with pytest.raises(CorruptImage):
        decode(buffer.getvalue())


def test_fit_equals_torchvision() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    for seed, (width, height) in enumerate([(50, 31), (31, 50), (33, 33), (20, 57), (112, 75)]):
        image = picture(seed, width, height)
        for size in (16, 31, 40):
            ours = fit(image, size, "bicubic")
            resized = tv.resize(image, size, InterpolationMode.BICUBIC)
            assert (ours == np.asarray(tv.center_crop(resized, [size, size]))).all()


def test_interpolations_differ_and_equal_size_changes_nothing() -> None:
    image = picture(1, 24, 24)
    assert (fit(image, 24, "bicubic") == np.asarray(image)).all()
    assert (fit(image, 16, "bicubic") != fit(image, 16, "bilinear")).any()


def test_a_strip_is_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    original = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *rest: object) -> Image.Image:
        sizes.append(size)
        return original(image, size, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    strip = Image.new("RGB", (3_000, 1), (7, 8, 9))
    assert (fit(strip, 32, "bicubic") == (7, 8, 9)).all()
    assert sizes == [(512, 32)]


def split_of(images: list[EncodedImage | ArrayImage], native: int | None, mark: str) -> Split:
    return Split("train", np.zeros(len(images), np.int64), images, mark, native)


class Counting(list[EncodedImage]):
    """Images that count how often they are walked over."""

    walks = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        Counting.walks += 1
        return super().__iter__()


@pytest.fixture
def twenty() -> Counting:
    Counting.walks = 0
    return Counting(EncodedImage(f"{i}.png", png(picture(i, 20, 14))) for i in range(20))


def test_pixels_are_cached_memory_mapped_and_read_only(fresh_cache: Path, twenty: Counting) -> None:
    split = split_of(twenty, None, "a")
    pixels = split.pixels(8)
    assert pixels.shape == (20, 8, 8, 3)
    assert pixels.dtype == np.uint8
    assert isinstance(pixels, np.memmap)
    assert not pixels.flags.writeable
    expected = [fit(image.open(), 8, "bicubic") for image in list.__iter__(twenty)]
    assert (pixels == np.stack(expected)).all()
    again = split.pixels(8)
    assert (again == pixels).all()
    assert Counting.walks == 1
    assert (split.pixels(8, interpolation="bilinear") != pixels).any()
    assert not list((fresh_cache / "pixels").glob("*.tmp"))


def test_another_content_is_another_file(fresh_cache: Path, twenty: Counting) -> None:
    one = split_of(twenty, None, "a").pixels(8)
    other = split_of(Counting(reversed(twenty)), None, "b").pixels(8)
    assert (one != other).any()
    assert (one == other[::-1]).all()


@pytest.mark.parametrize("damage", ["cut", "longer", "garbage", "empty", "other", "archive"])
def test_a_damaged_cache_file_is_built_anew(
    fresh_cache: Path, twenty: Counting, damage: str
) -> None:
    split = split_of(twenty, None, "a")
    good = np.array(split.pixels(8))
    (path,) = (fresh_cache / "pixels").glob("*.npy")
    whole = path.read_bytes()
    if damage == "archive":
        with path.open("wb") as file:
            np.savez(file, good)
    else:
        other = io.BytesIO()
        np.save(other, np.zeros((19, 8, 8, 3), np.uint8))
        path.write_bytes(
            {
                "cut": whole[:-100],
                "longer": whole + b"x",
                "garbage": b"\x93NUMPY" + os.urandom(200),
                "empty": b"",
                "other": other.getvalue(),
            }[damage]
        )
    assert (split.pixels(8) == good).all()
    assert path.read_bytes() == whole


def test_native_size(fresh_cache: Path, twenty: Counting) -> None:
    with pytest.raises(UserError, match="differ in size"):
        split_of(twenty, None, "a").pixels()
    squares = [EncodedImage("", png(picture(i))) for i in range(3)]
    split = split_of(squares, 12, "b")
    assert (split.pixels() == np.stack([np.asarray(picture(i)) for i in range(3)])).all()
    assert (split.pixels(12, interpolation="bilinear") == split.pixels()).all()
    direct = np.stack([fit(picture(i), 20, "bicubic") for i in range(3)])
    assert (split.pixels(20) == direct).all()


@pytest.mark.parametrize("bound", ["images", "bytes"])
def test_few_images_are_under_way(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """Of 200 images, no more are read ahead than two threads need, or than hold few bytes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    data = png(picture(0, 20, 14))
    if bound == "bytes":
        monkeypatch.setattr(room, "IN_FLIGHT", 1000)
        monkeypatch.setattr(room, "HELD_BYTES", 10 * len(data))
    read: list[int] = []

    class Walked(list[EncodedImage]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for i in range(200):
                read.append(i)
                yield EncodedImage(f"{i}", data)

    most = 0
    for done, _ in enumerate(room.ahead(lambda image: image.open(), Walked())):
        most = max(most, len(read) - done)
    assert len(read) == 200
    assert most <= (2 * room.IN_FLIGHT + 2 if bound == "images" else 12)


def test_rows_are_read_without_staying_mapped(fresh_cache: Path, twenty: Counting) -> None:
    pixels = split_of(twenty, None, "a").pixels(8)
    read: list[object] = []
    original = np.fromfile

    def watched(*arguments: object, **options: object) -> np.ndarray:
        read.append(arguments)
        return original(*arguments, **options)  # type: ignore[arg-type, call-overload]

    np.fromfile, kept = watched, original  # type: ignore[assignment]
    try:
        for start, stop in ((0, 20), (3, 7), (18, 30)):
            assert (rows(pixels, start, stop) == pixels[start:stop]).all()
        assert len(read) == 3
        # A part of a mapping, an array in memory and nothing at all are copied.
        assert (rows(pixels[5:], 0, 4) == pixels[5:9]).all()
        assert (rows(np.array(pixels), 2, 4) == pixels[2:4]).all()
        assert len(read) == 3
        assert len(rows(pixels, 20, 25)) == 0
    finally:
        np.fromfile = kept
    (path,) = (fresh_cache / "pixels").glob("*.npy")
    expected = np.array(pixels[2:4])
    path.unlink()
    assert (rows(pixels, 2, 4) == expected).all()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells resident memory")
def test_walking_large_pixels_keeps_little_resident(tmp_path: Path) -> None:
    """64 MB of pixels, read in batches: mapped pages would all count as this process's memory."""

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssFile")).split()[1])

    path = tmp_path / "pixels.npy"
    np.save(path, np.ones((1000, 148, 148, 3), np.uint8))
    pixels = np.load(path, mmap_mode="r")
    before = resident()
    total = sum(int(rows(pixels, i, i + 64)[:, 0, 0, 0].sum()) for i in range(0, 1000, 64))
    assert total == 1000
    assert resident() - before < 8_000


def _build_in_a_process(folder: str, barrier: object, results: object) -> None:
    os.environ["TRANSFERBENCH_CACHE"] = folder
    images = [EncodedImage("", png(picture(i, 20, 14))) for i in range(60)]
    barrier.wait()  # type: ignore[attr-defined]
    total = int(split_of(images, None, "a").pixels(24).astype(np.int64).sum())
    results.put(total)  # type: ignore[attr-defined]


def test_two_processes_build_the_same_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_build_in_a_process, args=(str(tmp_path), barrier, results))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    totals = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert totals[0] == totals[1]
    assert len(list((tmp_path / "pixels").iterdir())) == 1


def test_threads_keep_the_order(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    used: set[int] = set()
    barrier = threading.Barrier(2, timeout=60)

    class Slow(EncodedImage):
        def open(self) -> Image.Image:
            if threading.get_ident() not in used:
                used.add(threading.get_ident())
                if len(used) <= 2:
                    barrier.wait()
            return super().open()

    images = [Slow("", png(picture(i))) for i in range(30)]
    pixels = split_of(images, None, "threads").pixels(12)
    assert len(used) >= 2
    assert (pixels == np.stack([np.asarray(picture(i)) for i in range(30)])).all()


def test_a_survey_is_remembered(fresh_cache: Path, twenty: Counting) -> None:
    twenty[3] = EncodedImage("three.png", b"")
    twenty[7] = EncodedImage("seven.png", b"\xff\xd8\xff broken")
    first = survey(twenty, "content", "set/train", SILENT)
    assert [(i, w) for i, w, _ in first.corrupt] == [(3, "three.png"), (7, "seven.png")]
    assert first.native_size is None
    assert survey(twenty, "content", "set/train", SILENT).corrupt == first.corrupt
    assert Counting.walks == 1
    (note,) = (fresh_cache / "surveys").glob("*.json")
    for damaged in ("", "{}", '{"count": 20', '{"count": 3, "native_size": null, "corrupt": []}'):
        note.write_text(damaged)
        assert survey(twenty, "content", "set/train", SILENT).corrupt == first.corrupt


def test_a_survey_tells_equal_squares(fresh_cache: Path) -> None:
    squares = [EncodedImage("", png(picture(i))) for i in range(3)]
    assert survey(squares, "s", "x", SILENT).native_size == 12
    oblong = [EncodedImage("", png(picture(i, 12, 13))) for i in range(3)]
    assert survey(oblong, "o", "x", SILENT).native_size is None
    mixed = [*squares, EncodedImage("", png(picture(9, 14, 14)))]
    assert survey(mixed, "m", "x", SILENT).native_size is None


def test_whole_pixels_squash_and_tell_the_sides(fresh_cache: Path) -> None:
    given = [picture(seed, *size) for seed, size in enumerate([(20, 10), (10, 30), (12, 12)])]
    held = [EncodedImage(f"{i}.png", png(image)) for i, image in enumerate(given)]
    expected = [np.asarray(image.resize((9, 9), Image.Resampling.BILINEAR)) for image in given]

    def check(images: list[EncodedImage | ArrayImage]) -> None:
        split = Split("train", np.zeros(3, np.int64), images, "mixed")
        pixels, sides = room.whole_pixels(split, 9, interpolation="bilinear")
        assert sides.tolist() == [[image.height, image.width] for image in given]
        assert (pixels == np.stack(expected)).all()

    check(held)
    check([])  # from the cache
    (beside,) = fresh_cache.glob("pixels/*-sides.npy")
    beside.write_bytes(beside.read_bytes()[:-8])
    check(held)


def test_whole_squares_are_the_pixels_of_any_use(fresh_cache: Path) -> None:
    split = split_of([EncodedImage(f"{i}.png", png(picture(i, 16, 16))) for i in range(3)], 16, "s")
    pixels, sides = room.whole_pixels(split, 8)
    assert (pixels == split.pixels(8)).all()
    assert (sides == 16).all()


def test_a_survey_fills_the_cache_by_the_same_decoding(fresh_cache: Path, twenty: Counting) -> None:
    seen = survey(twenty, "a", "set/train", SILENT, Wanted(8))
    assert (len(seen.corrupt), seen.native_size) == (0, None)
    split = split_of(twenty, None, "a")
    expected = np.stack([fit(image.open(), 8, "bicubic") for image in list.__iter__(twenty)])
    assert (split.pixels(8) == expected).all()
    assert Counting.walks == 1
    # Another size has to decode once more; the survey is known by then.
    survey(twenty, "a", "set/train", SILENT, Wanted(6))
    split.pixels(6)
    assert Counting.walks == 2


def test_a_survey_of_equal_squares_keeps_native_pixels(fresh_cache: Path) -> None:
    Counting.walks = 0
    squares = Counting(EncodedImage("", png(picture(i))) for i in range(3))
    assert survey(squares, "s", "x", SILENT, Wanted(12, "bilinear")).native_size == 12
    pixels = split_of(squares, 12, "s").pixels()
    assert (pixels == np.stack([np.asarray(picture(i)) for i in range(3)])).all()
    assert Counting.walks == 1


def test_a_survey_with_gaps_keeps_no_pixels(fresh_cache: Path, twenty: Counting) -> None:
    twenty[3] = EncodedImage("three.png", b"")
    seen = survey(twenty, "a", "set/train", SILENT, Wanted(8))
    assert [i for i, _, _ in seen.corrupt] == [3]
    assert not list((fresh_cache / "pixels").iterdir())
    assert survey(twenty, "a", "set/train", SILENT, Wanted(8)).corrupt == seen.corrupt
    assert Counting.walks == 1


def test_equal_pixels_have_equal_hashes(fresh_cache: Path) -> None:
    """However they are stored, and whatever they are called."""
    one = picture(1, 9, 7)
    turned = Image.frombytes("RGB", (7, 9), one.tobytes())
    held = [one, picture(2, 9, 7), one, turned]
    images = [EncodedImage(f"{i}", encoded(h, k)) for i, (h, k) in enumerate(
        zip(held, ("PNG", "PNG", "BMP", "PNG"), strict=True))]  # fmt: skip
    hashes = survey(images, "h", "x", SILENT).hashes.tolist()
    assert hashes[0] == hashes[2]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("call", ["survey", "pixels"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    fresh_cache: Path, twenty: Counting, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def act() -> object:
        if call == "survey":
            return survey(twenty, "a", "set/train", SILENT, Wanted(8))
        return split_of(twenty, None, "a").pixels(8)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
            act()
    assert not [p for p in fresh_cache.rglob("*") if p.is_file()]
    act()
    assert (split_of(twenty, None, "a").pixels(8)[3] == fit(picture(3, 20, 14), 8, "bicubic")).all()
