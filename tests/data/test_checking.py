"""`transferbench check` and `list datasets`: what a person is told of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data import standins
from tests.data.makers import picture, png, write_classes, write_parquet
from transferbench.api.checking import check
from transferbench.api.listing import datasets
from transferbench.api.printing import listed_lines
from transferbench.cli import main
from transferbench.errors import UserError


def test_check_tells_a_folder_in_sentences(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    write_classes(folder / "train", {"cat": 4, "dog": 4, "eel": 4})
    write_classes(folder / "test", {"cat": 1, "dog": 2})  # drawn from the same seeds
    found = check(str(folder))
    assert found.kind == "data"
    text = " ".join(found.sentences)
    assert "3 classes: 12 train, 3 test images." in text
    assert "3 of the test images are also among those to train on" in text
    assert "It has no dataset.toml" in text
    assert all(sentence.endswith(".") for sentence in found.sentences)


def test_check_names_classes_without_training_images(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_parquet(folder / "train.parquet", [0, 1, 0, 1], seed=1)
    write_parquet(folder / "test.parquet", [0, 2], seed=2)
    (folder / "dataset.toml").write_text('classes = 3\nclass_names = ["a", "b", "c"]\n')
    assert "Without any training image: 'c'." in check(str(folder)).sentences


def test_check_reads_an_unpacked_archive_by_the_catalogues_card(tmp_path: Path) -> None:
    standins.food(tmp_path)
    with pytest.raises(UserError, match="the card says 101 classes, the files name 2"):
        check(str(tmp_path / "food-101"))
    standins.pets(tmp_path / "pets")
    for folder in (tmp_path / "pets", tmp_path / "pets" / "oxford-iiit-pet"):
        with pytest.raises(UserError, match="the card says 37 classes, the files name 3"):
            check(str(folder))


def test_check_knows_the_published_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "food-101.tar.gz"
    short.write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match="has 2 bytes, but the published archive of 'food' 4,996"):
        check(str(short))
    other = tmp_path / "cifar-10-python.tar.gz"
    other.write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"has the md5 .* it is damaged or another file"):
        check(str(other))
    from transferbench.data import sources
    from transferbench.data.dataset import ArchiveFile

    known = ArchiveFile(bytes=2, md5="aee8b3a5ad4cd5b1bba4e3a0e1c1d1f2")
    monkeypatch.setattr(sources, "published", lambda _: ("food", known))
    with pytest.raises(UserError, match="it is damaged or another file"):
        check(str(short))
    monkeypatch.setattr(sources, "published", lambda _: ("food", ArchiveFile(bytes=2)))
    assert check(str(short)).kind == "archive"


def test_the_listing_says_where_how_size_and_licence(tmp_path: Path) -> None:
    write_parquet(tmp_path / "bees" / "train.parquet", [0, 1, 0, 1])
    standins.dtd(tmp_path)
    rows = {row["name"]: row for row in datasets(tmp_path)}
    pets = rows["pets"]
    assert not pets["at_hand"]
    assert pets["get"] == "transferbench fetch pets"
    assert str(tmp_path / "pets") in pets["looked"]
    assert (pets["size"], pets["licence"]) == ("811 MB", "CC BY-SA 4.0")
    assert rows["dtd"]["at_hand"]
    assert rows["dtd"]["where"] == str(tmp_path)
    assert (rows["dtd"]["looked"], rows["dtd"]["get"]) == ([], "")
    assert rows["bees"]["size"].endswith(" MB")
    lines = listed_lines(list(rows.values()))
    place = next(i for i, line in enumerate(lines) if line.startswith("pets"))
    assert "not at hand" in lines[place]
    assert lines[place + 1] == "    licence: CC BY-SA 4.0"
    assert lines[place + 2].startswith("    looked in ")
    assert lines[place + 3] == "    get it: transferbench fetch pets"


def test_extra_keys_of_many_cards_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ants", "bees", "cats"):
        write_parquet(tmp_path / "root" / name / "train.parquet", [0, 1] * 5, seed=len(name))
        write_parquet(tmp_path / "root" / name / "test.parquet", [0, 1], seed=ord(name[0]))
        (tmp_path / "root" / name / "dataset.toml").write_text(f'sanity = 1\n{name} = "x"\n')
    sets = " ".join(f"--dataset {name}" for name in ("ants", "bees", "cats"))
    line = (
        f"evaluate --model random:resnet10t@32 {sets} --protocol knn --data-root root --device cpu"
    )
    assert main(line.split()) == 0
    said = [each for each in capsys.readouterr().err.splitlines() if "warning" in each]
    assert said == [
        "warning: 3 dataset.toml: kept but not read: ants, bees, cats, sanity (ants, bees, cats)"
    ]
    line = line.replace("@32", "@48").replace("--dataset bees --dataset cats ", "")
    assert main(line.split()) == 0
    said = [each for each in capsys.readouterr().err.splitlines() if "warning" in each]
    assert said == ["warning: ants/dataset.toml: kept but not read: ants, sanity"]


def test_an_evaluation_decodes_each_image_once_and_records_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_cache: Path
) -> None:
    import json

    from transferbench.data.images import EncodedImage

    monkeypatch.chdir(tmp_path)
    train = [png(picture(i, 40, 30)) for i in range(10)]
    write_parquet(tmp_path / "root/set/train.parquet", [0, 1] * 5, images=train)
    test = [train[3], png(picture(77, 30, 40))]
    write_parquet(tmp_path / "root/set/test.parquet", [0, 1], images=test)
    opened: list[str] = []
    original = EncodedImage.open
    monkeypatch.setattr(
        EncodedImage, "open", lambda self: (opened.append(self.where), original(self))[1]
    )
    line = "evaluate --model random:resnet10t@32 --dataset set --protocol knn --protocol linear"
    assert main([*line.split(), "--data-root", "root", "--device", "cpu", "--quiet"]) == 0
    assert len(opened) == len(set(opened)) == 12
    records = [json.loads(p.read_text()) for p in tmp_path.rglob("records/**/*.json")]
    assert [r["details"]["test_images_in_training"] for r in records] == [1, 1]


def test_a_full_disk_records_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import errno
    import os

    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "root/set/train.parquet", [0, 1] * 5)
    write_parquet(tmp_path / "root/set/test.parquet", [0, 1], seed=3)
    original = os.fsync

    def full(descriptor: int) -> None:
        # Room for small notes, not for pixels.
        if os.fstat(descriptor).st_size > 4000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    line = "evaluate --model random:resnet10t@32 --dataset set --protocol knn --data-root root"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert main([*line.split(), "--device", "cpu"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.rglob("records/**/*.json"))
    assert not list(fresh_cache.rglob("*.tmp"))
    assert main([*line.split(), "--device", "cpu"]) == 0
    assert len(list(tmp_path.rglob("records/**/*.json"))) == 1


def test_a_card_that_is_no_card_is_told(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset.toml").write_text(
        'metric = "top1"\nclasses = 2\ntask = "multiclass"\n[hub]\npath = "org/set"\n'
        'revision = "main"\nsplits = { train = ["train"] }\n[counts]\ntrain = 3\n'
    )
    with pytest.raises(UserError, match=r"dataset.toml: hub.revision: String should match"):
        check(str(tmp_path / "set"))
