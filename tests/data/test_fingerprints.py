"""Fingerprints are in the keys of records: one that changes makes finished boards stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from transferbench.data.folder import FolderSource
from transferbench.data.sources import find_source


def write_ppm(path: Path, values: bytes) -> None:
    """A picture of 4 x 4 pixels whose bytes no library's version changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P6\n4 4\n255\n" + values * 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for name, color in (("red", b"\xff\0\0"), ("green", b"\0\xff\0")):
            for i in range(5):
                write_ppm(tmp_path / "set" / split / name / f"{i}.ppm", color[:2] + bytes([i]))
    return tmp_path / "set"


EMBEDDED = {
    "drawn": (
        "67c5fa4feb335bf547513c2ad7a53c44f2ad9d1f36ac666e3665e4e019145a82",
        {"train": "e969e6a9f05c5a6287268897fc798be4f331049061441d2c3f92f3b60b6c2219"},
    ),
    "drawn-shapes": (
        "c499f3f531096cf73eb9874f13335bdb18f7935e6003746d80f996a12e4f28f8",
        {
            "train": "05cb142984c7a212e1bcf535c741867d6ae1716d22798d926244a7ce21918f49",
            "test": "cb8ebab0339378c220020d52f41224cd90928a7ac384f5f1f89cca7fb5fa1577",
        },
    ),
    "drawn-textures": (
        "a09d611a2bd52fa09fb57a18382a5e333f5d4ace757f2cd8d32ccec5bae5f42c",
        {
            "train": "c99cb519b298731baf1acc4a0e0ccb84005fc956947b6f47e3c013839816ca44",
            "test": "482c73c3f1187ab7c37ab5cb2ec4adad0c3d6f4fad948507d8aa35e2a778c66a",
        },
    ),
}
# Of the real sets beside the checkout.
FOLDERS = {
    "brain_mri": "914a9490df1cc06875fd62f89b47cc639c878df7e7d2645f017a89685e8b2077",
    "caltech101_mini": "13695f9450f7e5bb6cae8611204cb4e74e1b3490e1248de6f32da932f3135644",
    "cifar10": "73f73da92264f6a165c7dec0283913897de88d7de81236a1b23059fb452775e1",
    "corel5k_mini": "823e163e05085097f44bed3d3fb056ed172aefdf5d9a2b3b6938a7c3eb806fa8",
    "dtd10": "b4c6667a377ac26471d30270131c38ea0db160f8710177149e1f8c3d9492a040",
    "eurosat_mini": "cfb1cea97301602c6dbc040f699ffd70b217b0793d689970a156942972c403c8",
    "flowers17": "7eee2411d81cc3a08cbaa6abeeaf6f14eefbc39f45b33ff0440f0d1a3a77cbd2",
    "gtsrb_mini": "685d07e7cb5316d21f58a39f3cdfe708e611091161d58fa548166e51a31073fb",
    "imagenette64": "ab7c46d3bccdc93ea46da5f12e48a97df84e07a0506619b52fdfdcf73a180490",
    "stanford_cars_mini": "0c4d23500ec070389de72bba75e15464abac87e505842f035ae35644ab3de688",
    "tiny_imagenet32": "5064a8e7e3ef9c57dee31fcaa177456c2222593e41d3fcfd4df209f56527abb2",
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets(name: str) -> None:
    source = find_source(name)
    identity, splits = EMBEDDED[name]
    assert source.identity() == identity
    loaded = source.load()
    assert loaded.fingerprint == identity
    assert {n: s.fingerprint for n, s in loaded.splits.items()} == splits


def test_digits_change_with_scikit_learn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferbench.data.digits.version", lambda _: "1.9.1")
    expected = "61f400a59775229865cdcb067bb42803dcb592e435c665a4a9a6c7ce57b0f660"
    assert find_source("digits").identity() == expected


def test_class_folders(folder: Path) -> None:
    split = "52798cb47a29d125c89f3888ffa6625c93ab63a269bf6bc043707dc4d458e52f"
    source = FolderSource(folder)
    expected = "9323e9b9446a19e5d809797a15ac4687dd566ab40a08c51f2d728154221b369d"
    assert source.identity() == expected
    loaded = source.load()
    assert {n: s.fingerprint for n, s in loaded.splits.items()} == {"train": split, "test": split}
    (folder / "dataset.toml").write_text(
        'name = "set"\nmetric = "mean_per_class"\nlicence = "mine"\n[counts]\ntrain = 10\n'
    )
    with_card = "e2e44cd0b543ebea9621b9be6795eadc5cd13381b1d425932ec4a8ed37ad9540"
    assert FolderSource(folder).identity() == with_card


@pytest.mark.parametrize("name", FOLDERS)
def test_parquet_folders_with_cards(name: str, shared_data: Path) -> None:
    assert FolderSource(shared_data / name).identity() == FOLDERS[name]
