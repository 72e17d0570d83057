from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data import standins
from tests.data.makers import picture
from tests.data.standins import source
from transferbench.data.catalogue import CatalogueSource
from transferbench.data.sources import find_source, sources_at_hand, summaries
from transferbench.errors import NotAtHand, UserError
from transferbench.measures.metrics import average_precision_11
from transferbench.protocols.logistic import targets

POOLS = ["cropdiseases", "eurosat", "isic", "chestx"]
# The others of the twelve, Caltech-101 and VOC2007, have tests of their own.
PLAIN = ["aircraft", "cars", "cifar10", "cifar100", "dtd", "flowers", "food", "pets", "sun397"]
PLAIN += ["imagenet"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def build(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    builder = getattr(standins, name)
    needs = "monkeypatch" in inspect.signature(builder).parameters
    return builder(root, monkeypatch) if needs else builder(root)


def standin(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueSource:
    """A plain set's archive in small with a card that says so."""
    expected = build(name, root, monkeypatch)
    counts = {s: len(expected[s][0]) for s in ("train", "val", "test") if s in expected}
    return source(name, root, counts=counts, classes=len(expected["classes"]))


def refuse(found: CatalogueSource, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        found.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PLAIN)
def test_an_official_archive(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build(name, root, monkeypatch)
    counts = {s: len(expected[s][0]) for s in ("train", "val", "test") if s in expected}
    found = source(name, root, counts=counts, classes=len(expected["classes"]))
    dataset = found.load()
    assert dataset.classes == expected["classes"]
    assert dataset.fingerprint == found.identity()
    assert list(dataset.splits) == list(counts)
    for split in counts:
        labels, numbers = expected[split]
        assert dataset.splits[split].labels.tolist() == labels
        if numbers is not None:
            side = expected.get("side", 12)
            drawn = np.stack([np.asarray(picture(n, side, side)) for n in numbers])
            assert (dataset.splits[split].pixels() == drawn).all()
        else:
            assert len(dataset.splits[split].pixels(8)) == len(labels)


def test_the_flowers_card_reads_one_based_labels(root: Path, monkeypatch: Any) -> None:
    """The last class of the stand-in is 3 in the file, 2 here."""
    found = standin("flowers", root, monkeypatch)
    assert found.load().splits["val"].labels.tolist() == [2, 0]


def test_caltech101_in_both_forms(root: Path) -> None:
    standins.caltech101(root)
    sizes = [34, 31, 33, 32]
    paper = source("caltech101", root, counts={}, classes=4).load()
    assert paper.classes[0] == "BACKGROUND_Google"
    assert np.bincount(paper.splits["train"].labels).tolist() == [30] * 4
    train = [image.where for image in paper.splits["train"].images]
    test = [image.where for image in paper.splits["test"].images]
    assert len(set(train)) < len(train)
    assert len(set(test)) == len(test)
    assert len(set(train)) + len(test) == sum(sizes)
    assert not set(train) & set(test)

    usual = source("caltech101-30", root, counts={"train": 120, "test": 10}, classes=4).load()
    train = [image.where for image in usual.splits["train"].images]
    assert len(set(train)) == 120
    assert np.bincount(usual.splits["test"].labels).tolist() == [4, 1, 3, 2]
    assert usual.fingerprint != paper.fingerprint


# Images of each folder of the real archive, in the order of the labels.
CALTECH_SIZES = """
467 435 435 200 798 55 800 42 42 47 54 46 33 128 98 43 85 91 50 43 123 47 59 62 107 47 69 73 70 50
51 57 67 52 65 68 75 64 53 64 85 67 67 45 34 34 51 99 100 42 54 88 80 31 64 86 114 61 81 78 41 66 43
40 87 32 76 55 35 39 47 38 45 53 34 57 82 59 49 40 63 39 84 57 35 64 45 86 59 64 35 85 49 86 75 239
37 59 34 56 39 60
"""


def test_the_papers_caltech_list_has_the_published_repeats(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,060 rows of 2,416 images: 1,876 once, 446 twice, 85, 8 and 1 three to five times."""
    from types import SimpleNamespace

    from transferbench.data.archive_lists import READERS

    base = root / "caltech101" / "101_ObjectCategories"
    sizes = [int(n) for n in CALTECH_SIZES.split()]
    classes = ["BACKGROUND_Google", *(f"c{k:03}" for k in range(1, 102))]
    for name in classes:
        (base / name).mkdir(parents=True)
    samples = [
        (str(base / classes[k] / f"{i}.jpg"), k) for k, n in enumerate(sizes) for i in range(n)
    ]
    fake = SimpleNamespace(classes=classes, samples=samples)
    monkeypatch.setattr("torchvision.datasets.ImageFolder", lambda _: fake)
    listing = READERS["caltech101"].read(root, "paper")
    repeats = np.unique(
        np.unique(listing.files["train"], return_counts=True)[1], return_counts=True
    )
    assert dict(zip(*map(np.ndarray.tolist, repeats), strict=True)) == {
        1: 1876, 2: 446, 3: 85, 4: 8, 5: 1,
    }  # fmt: skip
    assert (len(listing.files["train"]), len(listing.files["test"])) == (3060, 6728)
    assert min(np.bincount(listing.labels["test"])) >= 10


@pytest.mark.parametrize("name", ["voc2007", "voc2007-ignored"])
def test_voc_difficult_objects(name: str, root: Path) -> None:
    expected = standins.voc2007(root)
    counts = {split: len(ids) for split, ids in expected["ids"].items()}
    dataset = source(name, root, counts=counts).load()
    assert (dataset.task, dataset.metric) == ("multilabel", "map11")
    dog, cat, train = (dataset.classes.index(c) for c in ("dog", "cat", "train"))
    labels = dataset.splits["train"].labels
    assert labels.shape == (3, 20)
    if name == "voc2007":
        assert labels.dtype == np.uint8
        assert labels[:, [dog, cat, train]].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    else:
        # 0 among -1 and 1 is left out of the class's score.
        assert labels[:, [dog, cat, train]].tolist() == [[1, -1, 1], [0, -1, -1], [-1, 1, -1]]
        assert dataset.splits["test"].labels[1, dog] == 0
    assert (
        dataset.splits["test"].pixels() == np.stack([np.asarray(picture(n)) for n in (4, 5)])
    ).all()


def test_difficult_objects_change_the_score_and_not_the_training(root: Path) -> None:
    expected = standins.voc2007(root)
    counts = {split: len(ids) for split, ids in expected["ids"].items()}
    negative, ignored = (
        source(name, root, counts=counts).load() for name in ("voc2007", "voc2007-ignored")
    )
    rows = [each.splits["train"].labels for each in (negative, ignored)]
    solved = [targets(labels, "multilabel", 20) for labels in rows]
    for one, other in zip(*solved, strict=True):
        assert (one == other).all()
    dog = negative.classes.index("dog")
    truth = [labels[:, dog] for labels in rows]
    # The second image has only difficult dogs: first in rank, it costs half the precision or none.
    scores = np.array([0.5, 0.9, 0.1])
    assert average_precision_11(truth[0], scores, form="devkit") == pytest.approx(0.5)
    assert average_precision_11(truth[1], scores, form="devkit") == pytest.approx(1.0)


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_without_a_split(name: str, root: Path) -> None:
    expected = getattr(standins, name)(root)
    n = expected["pool"]
    counts = {"train": n - n // 5, "test": n // 5}
    dataset = source(name, root, counts=counts, classes=len(expected["classes"])).load()
    assert dataset.classes == tuple(expected["classes"])
    names = [i.where for split in dataset.splits.values() for i in split.images]
    assert len(set(names)) == n
    # The same images are the test split wherever the archive lies.
    moved = root.parent / "other"
    root.rename(moved)
    again = source(name, moved, counts=counts, classes=len(expected["classes"]))
    assert again.identity() == dataset.fingerprint


def test_a_load_that_finds_other_counts_fails_with_both_numbers(root: Path) -> None:
    standins.food(root)
    refuse(source("food", root, classes=2), "train has 4 images, but the card says 75750")


def test_swapped_splits_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("flowers", root, monkeypatch)
    swapped = source("flowers", root, counts={"train": 4, "val": 2, "test": 2})
    refuse(swapped, "train has 2 images and test 4, but the card says 4 and 2: .* swapped")


def test_a_label_outside_the_cards_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = standin("pets", root, monkeypatch)
    for name in ("trainval", "test"):
        path = root / "oxford-iiit-pet" / "annotations" / f"{name}.txt"
        lines = [
            line.replace(" 3 1 ", " 9 1 ") if line.startswith("Birman") else line
            for line in path.read_text().splitlines()
        ]
        path.write_text("\n".join(lines) + "\n")
    refuse(found, r"train, oxford-iiit-pet/images/Birman_1.jpg: label 8 is outside 0\.\.2")


def test_a_card_with_other_classes_than_the_archive(root: Path, monkeypatch: Any) -> None:
    build("pets", root, monkeypatch)
    refuse(source("pets", root, counts={}), "the card says 37 classes, the files name 3")


def damage_cars_inside(root: Path) -> None:
    base = root / "stanford_cars"
    name = "cars_test_annos_withlabels.mat"
    (base / name).rename(base / "devkit" / name)


def damage_cars_nested(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "cars_train").rename(base / "t")
    (base / "cars_train").mkdir()
    (base / "t").rename(base / "cars_train" / "cars_train")


def damage_sun_partition(root: Path) -> None:
    (root / "SUN397" / "Testing_01.txt").unlink()


def damage_sun_image(root: Path) -> None:
    next((root / "SUN397").rglob("sun_a0.jpg")).unlink()


def damage_food_image(root: Path) -> None:
    next((root / "food-101" / "images").rglob("*.jpg")).unlink()


def damage_food_list(root: Path) -> None:
    path = root / "food-101" / "meta" / "train.json"
    path.write_text(path.read_text()[:20])


def damage_cifar(root: Path) -> None:
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-50])


def damage_flowers(root: Path) -> None:
    path = root / "flowers-102" / "setid.mat"
    path.write_bytes(path.read_bytes() + b" ")


def damage_pets_image(root: Path) -> None:
    path = root / "oxford-iiit-pet" / "images" / "Birman_1.jpg"
    path.write_bytes(path.read_bytes()[:-40])


def damage_pets_list(root: Path) -> None:
    (root / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("Abyssinian_3 one 1 1\n")


def damage_imagenet(root: Path) -> None:
    (root / "imagenet" / "val" / "n01443537").rename(root / "imagenet" / "val" / "n99999999")


def damage_aircraft(root: Path) -> None:
    path = root / "fgvc-aircraft-2013b" / "data" / "images_variant_val.txt"
    path.write_text("0000003 Concorde\n")


@pytest.mark.parametrize(
    ("name", "damage", "match"),
    [
        ("cars", damage_cars_inside, "must lie beside devkit"),
        ("cars", damage_cars_nested, "one folder higher"),
        ("sun397", damage_sun_partition, "Testing_01.txt is missing; unpack Partitions.zip"),
        ("sun397", damage_sun_image, "1 of the 3 images of train are missing, a/abbey/sun_a0.jpg"),
        ("food", damage_food_image, "1 of the 6 images that the lists name are missing"),
        ("food", damage_food_list, "cannot be read .JSONDecodeError"),
        ("cifar10", damage_cifar, "another checksum"),
        ("flowers", damage_flowers, "not the official files"),
        ("pets", damage_pets_image, r"Birman_1.jpg is corrupt .*--skip-corrupt 1"),
        ("pets", damage_pets_list, "cannot be read .ValueError"),
        ("imagenet", damage_imagenet, "'n01443537' is in only one of train and val"),
        ("aircraft", damage_aircraft, "cannot be read .KeyError"),
    ],
)
def test_torn_archives(
    name: str,
    damage: Callable[[Path], None],
    match: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = standin(name, root, monkeypatch)
    damage(root)
    refuse(found, match)


def test_cifar_is_not_unpickled_unless_official(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = standin("cifar10", root, monkeypatch)
    marker = root / "ran"
    evil = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(evil)
    refuse(found, "not the official file")
    assert not marker.exists()


def test_lists_are_remembered_without_torch(
    root: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transferbench.data.archive_lists import READERS

    first = standin("food", root, monkeypatch).identity()
    asked: list[Path] = []
    original = READERS["food"].read
    watched = lambda place, form: (asked.append(place), original(place, form))[1]  # noqa: E731
    monkeypatch.setitem(READERS, "food", type(READERS["food"])(
        READERS["food"].bases, READERS["food"].marks, READERS["food"].listed, watched
    ))  # fmt: skip
    again = source("food", root, counts={"train": 4, "test": 2}, classes=2)
    assert again.identity() == first
    assert not asked
    # A torn note is read anew; a changed image is another content.
    for note in (fresh_cache / "listings").iterdir():
        note.write_text(note.read_text()[:30])
    assert source("food", root, counts={"train": 4, "test": 2}, classes=2).identity() == first
    assert asked
    standins.save(root / "food-101" / "images" / "waffles" / "1000.jpg", 77)
    changed = source("food", root, counts={"train": 4, "test": 2}, classes=2)
    assert changed.identity() != first


def test_what_is_not_at_hand_says_where_it_was_looked_for_and_how_to_get_it(root: Path) -> None:
    pets = find_source("pets", data_root=root)
    with pytest.raises(NotAtHand) as caught:
        pets.identity()
    assert caught.value.command == "transferbench fetch pets"
    for place in (root / "pets", root, "timm/oxford-iiit-pet at 10b688881011"):
        assert str(place) in str(caught.value)
    with pytest.raises(NotAtHand) as caught:
        find_source("dtd", data_root=root).load()
    assert f"DTD('{root}', download=True)" in caught.value.command
    with pytest.raises(NotAtHand, match="no data root was given"):
        find_source("aircraft").identity()


def test_archives_that_are_not_unpacked_are_seen(root: Path) -> None:
    (root / "pets").mkdir()
    (root / "pets" / "images.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(NotAtHand, match="has 2 bytes, but the published archive 791,918,971"):
        find_source("pets", data_root=root).identity()
    (root / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(NotAtHand, match="is there, but not unpacked"):
        find_source("cifar10", data_root=root).identity()


def test_unpacked_archives_are_the_catalogues_and_no_sets_of_their_own(root: Path) -> None:
    """Below the data root itself, or in a folder of the set's name."""
    for place, name in ((root, "food"), (root / "pets", "pets"), (root, "imagenet"), (root, "dtd")):
        getattr(standins, name)(place)
    standins.eurosat(root)
    names = {s.name: s for s in summaries(root)}
    assert all(not s.problem for s in names.values())
    assert "food-101" not in names
    at_hand = {s.name for s in names.values() if s.kind == "catalogue" and s.at_hand}
    assert at_hand == {"food", "pets", "imagenet", "dtd", "eurosat"}
    assert at_hand <= {s.name for s in sources_at_hand(root)}
    assert names["pets"].where == str(root / "pets")
    # One's own card makes the folder one's own set.
    (root / "pets" / "dataset.toml").write_text('metric = "top1"\n')
    assert find_source("pets", data_root=root).kind == "folder"
    assert find_source("catalogue:pets", data_root=root).kind == "catalogue"
