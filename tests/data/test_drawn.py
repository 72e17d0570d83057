from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from transferbench.data import canvas
from transferbench.data.digits import DIGITS
from transferbench.data.drawn import DRAWN, SHAPES, TEXTURES, DrawnImages, DrawnSource
from transferbench.data.sources import Source

DRAWN_SETS = (DRAWN, SHAPES, TEXTURES)
SETS: tuple[Source, ...] = (*DRAWN_SETS, DIGITS)


def first(source: DrawnSource, split: str, count: int) -> np.ndarray:
    pictures = source.load().splits[split].images
    return np.stack([np.asarray(p.open()) for p, _ in zip(pictures, range(count), strict=False)])


def hashes(pixels: np.ndarray) -> set[str]:
    return {hashlib.sha256(row.tobytes()).hexdigest() for row in pixels}


@pytest.mark.parametrize("source", SETS, ids=lambda s: s.name)
def test_a_set_is_what_its_card_says(source: Source) -> None:
    dataset = source.load()
    card = source.card
    assert dataset.card == card
    assert dataset.fingerprint == source.identity()
    assert card.name == source.name == dataset.name
    assert len(dataset.classes) == card.classes == len(set(dataset.classes))
    assert card.validation == "random-fifth"
    assert card.title
    assert card.licence != "not stated"
    assert card.citation
    assert card.source
    assert card.split
    assert not card.unknown_keys
    assert {n: len(s) for n, s in dataset.splits.items()} == card.counts
    for name, split in dataset.splits.items():
        per_class = np.bincount(split.labels, minlength=card.classes)
        assert split.labels.dtype == np.int64
        assert len(per_class) == card.classes
        assert per_class.min() > 0
        assert split.native_size == 32
        if limits := (card.images_per_class or {}).get(name):
            assert (per_class.min(), per_class.max()) == (limits.min, limits.max)


def test_sizes() -> None:
    assert DRAWN.card.counts["train"] >= 4000
    assert "test" not in DRAWN.card.counts
    for task in (SHAPES, TEXTURES):
        assert task.card.counts["test"] >= 1000


def test_pixels_are_what_is_drawn() -> None:
    pixels = SHAPES.load().splits["test"].pixels()
    assert pixels.shape == (SHAPES.card.counts["test"], 32, 32, 3)
    assert (pixels[:70] == first(SHAPES, "test", 70)).all()


def test_no_picture_is_in_two_sets_or_twice_in_one() -> None:
    found = [hashes(split.pixels()) for s in DRAWN_SETS for split in s.load().splits.values()]
    assert len(set.union(*found)) == sum(sum(s.card.counts.values()) for s in DRAWN_SETS)


def test_another_process_draws_the_same() -> None:
    code = (
        "import hashlib, numpy as np; from transferbench.data.drawn import DRAWN;"
        "rows = zip(DRAWN.load().splits['train'].images, range(100));"
        "data = b''.join(np.asarray(p.open()).tobytes() for p, _ in rows);"
        "print(DRAWN.identity(), hashlib.sha256(data).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = hashlib.sha256(first(DRAWN, "train", 100).tobytes()).hexdigest()
    assert done.stdout.split() == [DRAWN.identity(), expected]


def test_a_second_reading_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    DRAWN.load().splits["train"].pixels()

    def never(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(canvas, "draw", never)
    assert DRAWN.load().splits["train"].pixels().shape == (
        len(DRAWN.load().splits["train"]),
        32,
        32,
        3,
    )
    assert DRAWN.load().splits["train"].pixels(16).shape[1] == 16


def test_identity_follows_the_generator_and_the_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {SHAPES.identity(), TEXTURES.identity(), DRAWN.identity()}
    assert len(known) == 3
    known.add(DrawnSource("drawn-shapes", stream=7, ask="shape").identity())
    monkeypatch.setattr(canvas, "VERSION", canvas.VERSION + 1)
    known.add(SHAPES.identity())
    assert len(known) == 5


def test_the_pictures_belong_to_the_generator_version() -> None:
    """Fails when a change of the drawing is not marked by a new `canvas.VERSION`."""
    means = first(DRAWN, "train", 64).mean(axis=(1, 2))
    assert means.shape == (64, 3)
    assert (canvas.VERSION, round(float(means.mean()), 1)) == (1, 128.5)


def test_shapes_and_textures_are_crossed() -> None:
    for source in DRAWN_SETS:
        for split in source.load().splits.values():
            assert isinstance(split.images, DrawnImages)
            table = np.zeros((len(canvas.SHAPES), len(canvas.TEXTURES)), int)
            np.add.at(table, split.images.kinds, 1)
            assert table.min() == table.max() > 0


def statistics(pixels: np.ndarray) -> np.ndarray:
    """Mean, spread and eight-bin histogram of every channel and of the lightness, (N, 40)."""
    values = pixels.reshape(len(pixels), -1, 3).astype(np.float64)
    values = np.concatenate([values, values.mean(axis=2, keepdims=True)], axis=2)
    bins = [((values >= e) & (values < e + 32)).mean(axis=1) for e in range(0, 256, 32)]
    return np.concatenate([values.mean(axis=1), values.std(axis=1), *bins], axis=1)


@pytest.mark.parametrize("source", [SHAPES, TEXTURES], ids=lambda s: s.name)
@pytest.mark.parametrize("reading", ["pixels", "statistics"])
def test_the_label_cannot_be_read_from_pixels(source: DrawnSource, reading: str) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    splits = source.load().splits
    scaler = StandardScaler()
    features = {
        name: statistics(split.pixels())
        if reading == "statistics"
        else split.pixels()[:, ::2, ::2].reshape(len(split), -1).astype(np.float64)
        for name, split in splits.items()
    }
    model = LogisticRegression(C=0.001 if reading == "pixels" else 0.1, max_iter=50)
    model.fit(scaler.fit_transform(features["train"]), splits["train"].labels)
    score = model.score(scaler.transform(features["test"]), splits["test"].labels)
    assert score < 0.25, f"one in eight is chance; {score:.1%}"


def test_all_shapes_cover_the_same_area() -> None:
    line = np.linspace(-1.5, 1.5, 601, dtype=np.float32)
    b, a = np.meshgrid(line, line)
    areas = {kind: float((shape(a, b) < 0).mean() * 9) for kind, shape in canvas.SHAPES.items()}
    assert max(areas.values()) - min(areas.values()) < 0.06, areas


@pytest.mark.parametrize("kind", [*canvas.TEXTURES])
def test_every_texture_has_about_as_much_of_either_color(kind: str) -> None:
    x, y = np.meshgrid(*2 * [np.arange(-16, 16, 0.5, dtype=np.float32)])
    wave = canvas.TEXTURES[kind]
    generator = np.random.default_rng(0)
    phases = generator.uniform(0, 1, (200, 12)).astype(np.float32)[:, :, None, None]
    area = wave(
        x + np.zeros((200, 1, 1)), y + np.zeros((200, 1, 1)), np.full((200, 1, 1), 7.0), phases
    )
    assert 0.4 < (area > 0).mean() < 0.6


def test_digits_follow_the_documented_rule() -> None:
    from sklearn.datasets import load_digits

    values = load_digits().images
    dataset = DIGITS.load()
    pixels = np.concatenate([dataset.splits[name].pixels() for name in ("train", "test")])
    assert pixels.shape == (1797, 32, 32, 3)
    assert (pixels == pixels[..., :1]).all()
    assert pixels.max() == 255
    # Averaging every block of 4 x 4 gives the digit back, but for the smoothing.
    blocks = pixels[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)) * (16 / 255)
    assert np.abs(blocks - values).mean() < 1.0
    assert np.concatenate([s.labels for s in dataset.splits.values()]).tolist() == (
        load_digits().target.tolist()
    )


def test_digits_are_known_by_scikit_learns_version(monkeypatch: pytest.MonkeyPatch) -> None:
    known = DIGITS.identity()
    monkeypatch.setattr("transferbench.data.digits.version", lambda name: "0.0")
    assert DIGITS.identity() != known


def test_cards_name_files_of_the_package() -> None:
    for source in DRAWN_SETS:
        assert (Path(__file__).parents[2] / source.card.source).is_file()
