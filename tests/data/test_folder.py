from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.makers import picture, png, write_classes, write_parquet
from transferbench.data import images as room
from transferbench.data.class_folders import ClassFolders
from transferbench.data.folder import CardWarning, FolderSource
from transferbench.data.sources import find_source
from transferbench.errors import UserError

CARD = """
name = "small"
task = "multiclass"
metric = "mean_per_class"
classes = 3
label_column = "label"
licence = "free"
[counts]
train = 9
test = 6
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    write_parquet(folder / "train.parquet", [0, 1, 2] * 3, seed=1)
    write_parquet(folder / "test.parquet", [0, 1, 2] * 2, seed=2)
    (folder / "dataset.toml").write_text(CARD)
    return folder


def refuse(folder: Path, *, match: str, skip_corrupt: int = 0) -> None:
    with pytest.raises(UserError, match=match) as caught:
        FolderSource(folder).load(skip_corrupt=skip_corrupt)
    assert "\n" not in str(caught.value)


def test_parquet_with_a_card(small: Path) -> None:
    dataset = FolderSource(small).load()
    assert dataset.name == "small"
    assert dataset.metric == "mean_per_class"
    assert dataset.task == "multiclass"
    assert dataset.classes == ("0", "1", "2")
    assert dataset.num_classes == 3
    assert list(dataset.splits) == ["train", "test"]
    train = dataset.splits["train"]
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 1, 2] * 3
    assert len(train) == 9
    assert train.native_size == 12
    assert (train.pixels()[4] == np.asarray(picture(1004))).all()
    assert dataset.card.validation == "random-fifth"


def test_parquet_without_a_card_is_inferred(small: Path) -> None:
    (small / "dataset.toml").unlink()
    write_parquet(small / "val.parquet", [2, 1], seed=3)
    dataset = FolderSource(small).load()
    card = dataset.card
    assert (card.name, card.task, card.metric, card.classes) == ("small", "multiclass", "top1", 3)
    assert card.counts == {"train": 9, "val": 2, "test": 6}
    assert card.validation == "given"
    assert dataset.splits["val"].labels.tolist() == [2, 1]


def test_a_part_of_a_card_is_completed(small: Path) -> None:
    (small / "dataset.toml").write_text('metric = "mean_per_class"\nlicence = "mine"\n')
    card = FolderSource(small).card
    assert (card.metric, card.licence, card.classes) == ("mean_per_class", "mine", 3)
    assert card.counts == {"train": 9, "test": 6}


def test_names_as_the_hub_gives_them(tmp_path: Path) -> None:
    for name, labels in {
        "train-00000-of-00002": [0, 1],
        "train-00001-of-00002": [1, 0],
        "validation-00000-of-00001": [0],
        "test-00000-of-00001": [1, 1],
    }.items():
        write_parquet(tmp_path / "hub" / "data" / f"{name}.parquet", labels)
    dataset = FolderSource(tmp_path / "hub").load()
    assert {n: s.labels.tolist() for n, s in dataset.splits.items()} == {
        "train": [0, 1, 1, 0],
        "val": [0],
        "test": [1, 1],
    }


def test_class_names_and_columns_come_from_the_schema(tmp_path: Path) -> None:
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"_type": "ClassLabel", "names": ["ant", "bee", "cat"]},
    }
    rows = pa.table({"img": [png(picture(i)) for i in range(4)], "fine_label": [0, 1, 1, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "bees").mkdir()
    for split in ("train", "test"):
        pq.write_table(
            rows.replace_schema_metadata(metadata), tmp_path / "bees" / f"{split}.parquet"
        )
    dataset = FolderSource(tmp_path / "bees").load()
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.card.label_column == "fine_label"
    assert (dataset.splits["train"].pixels()[2] == np.asarray(picture(2))).all()


def test_several_labels_an_image(tmp_path: Path) -> None:
    write_parquet(tmp_path / "multi" / "train.parquet", [[0, 2], [], [1], [2, 2]])
    write_parquet(tmp_path / "multi" / "test.parquet", [[1], [0]])
    dataset = FolderSource(tmp_path / "multi").load()
    assert (dataset.task, dataset.metric) == ("multilabel", "map11")
    labels = dataset.splits["train"].labels
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_class_folders(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("valid", 2), ("test", 3)):
        write_classes(tmp_path / "pets" / split, {"dog": count, "Cat": count}, seed=count)
    (tmp_path / "pets" / "train" / "dog" / ".hidden.png").write_bytes(b"")
    (tmp_path / "pets" / "train" / "dog" / "notes.txt").write_text("not an image")
    dataset = FolderSource(tmp_path / "pets").load()
    assert dataset.classes == ("Cat", "dog")
    assert {n: s.labels.tolist() for n, s in dataset.splits.items()} == {
        "test": [0] * 3 + [1] * 3,
        "train": [0] * 4 + [1] * 4,
        "val": [0] * 2 + [1] * 2,
    }
    assert dataset.card.split is None
    assert (dataset.splits["train"].pixels()[0] == np.asarray(picture(104))).all()


def test_without_a_test_folder_a_fixed_fifth_is_taken_and_said(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 14, "dog": 5, "eel": 3, "fox": 1})
    source = FolderSource(tmp_path / "pets")
    dataset = source.load()
    assert "SHA-1" in (dataset.card.split or "")
    per_class = {n: np.bincount(s.labels).tolist() for n, s in dataset.splits.items()}
    assert per_class == {"train": [12, 4, 2, 1], "test": [2, 1, 1]}
    # The order in which the file system lists names changes nothing, nor does another place.
    copy = tmp_path / "elsewhere" / "pets"
    copy.parent.mkdir()
    (tmp_path / "pets").rename(copy)
    assert FolderSource(copy).identity() == source.identity()


def test_train_and_test_alone_keep_their_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets" / "train", {"a": 5, "b": 5})
    dataset = FolderSource(tmp_path / "pets").load()
    assert list(dataset.splits) == ["train"]


def test_the_card_orders_the_class_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 5, "dog": 5})
    (tmp_path / "pets" / "dataset.toml").write_text('class_names = ["dog", "cat"]\n')
    dataset = FolderSource(tmp_path / "pets").load()
    assert dataset.classes == ("dog", "cat")
    first = dataset.splits["train"].images
    assert [i.where.split("/")[1] for i in first] == ["dog"] * 4 + ["cat"] * 4
    (tmp_path / "pets" / "dataset.toml").write_text('class_names = ["dog", "cow"]\n')
    refuse(tmp_path / "pets", match="'cat' is in only one")


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([0, 1, 3], r"train.parquet, row 2: label 3 is outside 0\.\.2"),
        ([0, -1, 2], r"row 1: label -1 is outside"),
        ([0, 1, None], r"row 2: the label is missing"),
        ([0.0, 1.0, 2.0], "holds double, not integers"),
        (["a", "b", "c"], "holds string, not integers"),
        ([1, 1, 1], "all training images have one label"),
    ],
)
def test_wrong_labels(small: Path, labels: list[object], match: str) -> None:
    write_parquet(small / "train.parquet", labels)
    (small / "dataset.toml").write_text(CARD.replace("train = 9", "train = 3"))
    refuse(small, match=match)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([[0], [1, 3]], r"row 1: label 3 is outside 0\.\.2"),
        ([[0], None], "row 1: the label is missing"),
        ([[0], [None]], "row 1: the label is missing"),
    ],
)
def test_wrong_labels_among_several(tmp_path: Path, labels: list[object], match: str) -> None:
    write_parquet(tmp_path / "multi" / "train.parquet", labels)
    (tmp_path / "multi" / "dataset.toml").write_text("classes = 3\n")
    refuse(tmp_path / "multi", match=match)


def test_counts_that_differ_name_both_numbers(small: Path) -> None:
    (small / "dataset.toml").write_text(CARD.replace("test = 6", "test = 7"))
    refuse(small, match="test has 6 images, but the card says 7")
    limits = "\n[images_per_class]\ntrain = { min = 3, max = 4 }\n"
    (small / "dataset.toml").write_text(CARD + limits)
    refuse(small, match="the most images of a class are 3, but the card says 4")
    (small / "dataset.toml").write_text(CARD + "\n[label_histogram]\ntest = [2, 3, 1]\n")
    refuse(small, match="label 1 has 2 images, but the card says 3")


def test_a_split_that_the_card_states_must_be_there(small: Path) -> None:
    (small / "dataset.toml").write_text(CARD + "val = 4\n")
    refuse(small, match="val has 0 images, but the card says 4")
    (small / "dataset.toml").write_text(CARD + "\n[label_histogram]\nval = [2, 3, 1]\n")
    refuse(small, match="val has 0 images, but the card says how many")
    (small / "test.parquet").unlink()
    (small / "dataset.toml").write_text(CARD)
    refuse(small, match="test has 0 images, but the card says 6")
    (small / "dataset.toml").write_text("validation = 'given'\nclasses = 3\nmetric = 'top1'\n")
    refuse(small, match="validation = 'given' but")


def test_a_label_far_out_makes_no_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "far" / "train.parquet", [0, None, 10**13, 1])
    write_parquet(tmp_path / "far" / "test.parquet", [0, 1])
    refuse(tmp_path / "far", match=f"train.parquet, row 2: label {10**13} would make")
    write_parquet(tmp_path / "multi" / "train.parquet", [[0, 1], [], [None, 10**13]])
    refuse(tmp_path / "multi", match="train.parquet, row 2: label .* classes of 3 images")


@pytest.mark.parametrize(
    ("train", "test", "val"), [("Training", "Testing", "Valid"), ("TRAIN", "Test", "validation")]
)
def test_split_folders_in_other_words(tmp_path: Path, train: str, test: str, val: str) -> None:
    for name, count in ((train, 4), (val, 2), (test, 3)):
        write_classes(tmp_path / "pets" / name, {"cat": count, "dog": count}, seed=count)
    dataset = FolderSource(tmp_path / "pets").load()
    assert dataset.classes == ("cat", "dog")
    assert {n: len(s) for n, s in dataset.splits.items()} == {"train": 8, "val": 4, "test": 6}


def test_split_folders_that_are_not_clear(tmp_path: Path) -> None:
    def lay(name: str, *splits: str) -> Path:
        for split in splits:
            write_classes(tmp_path / name / split, {"cat": 2, "dog": 2})
        return tmp_path / name

    refuse(lay("a", "Testing", "val"), match="split folder '(Testing|val)', but none 'train'")
    refuse(lay("b", "train", "val", "valid"), match="'val' and 'valid' are both the val split")
    refuse(lay("c", "fit", "eval"), match="'eval' and 'fit' hold no images but folders .*'cat'")
    refuse(lay("d/train", "one", "two"), match="'one' and 'two' hold no images but folders")


def test_a_class_may_be_called_as_a_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "tickets", {"Valid": 5, "void": 5})
    dataset = FolderSource(tmp_path / "tickets").load()
    assert dataset.classes == ("Valid", "void")
    assert {n: len(s) for n, s in dataset.splits.items()} == {"train": 8, "test": 2}


def test_class_folders_have_one_label_an_image(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 5, "dog": 5})
    (tmp_path / "pets" / "dataset.toml").write_text("task = 'multilabel'\nmetric = 'map11'\n")
    refuse(tmp_path / "pets", match="'multilabel', but an image in a class folder has one label")


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", match="does not exist")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", match="is empty")
    (tmp_path / "empty" / "readme.txt").write_text("no images")
    refuse(tmp_path / "empty", match="holds no images")
    write_classes(tmp_path / "flat", {".": 3})
    refuse(tmp_path / "flat", match="holds no images")
    write_parquet(tmp_path / "named" / "all.parquet", [0, 1])
    refuse(tmp_path / "named", match="no parquet file is named after its split")
    write_parquet(tmp_path / "tests" / "test.parquet", [0, 1])
    refuse(tmp_path / "tests", match="the split 'train' has no images")


def test_one_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", {"only": 6})
    refuse(tmp_path / "one", match="has one class; a data set needs two")
    write_parquet(tmp_path / "zeros" / "train.parquet", [0, 0, 0])
    refuse(tmp_path / "zeros", match="has one class; a data set needs two")


def test_a_split_with_a_class_of_its_own(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets" / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "pets" / "test", {"a": 2, "c": 2})
    refuse(tmp_path / "pets", match="class 'c' of test is not in train")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("classes = [", "not readable TOML"),
        ("classes = 'many'", "classes: .*integer"),
        ("classes = 1", "two classes or more"),
        ("metric = 'top5'", "metric: .*'top1'"),
        ("metric = 'map11'", "'map11' does not go with a multiclass task"),
        ("label_column = 'kind'", "no column 'kind'; it has image, label"),
        ("[files]\ntrain = ['missing.parquet']", "no file 'missing.parquet'"),
        ("[files]\ntrain = ['../outside.parquet']", r"no file '../outside.parquet'"),
        ("[files]\ntrain = 'train.parquet'", r"files\.train: .*list"),
        ("[counts]\ntrian = 9", "'trian' is not a split"),
        ("class_names = ['a', 'b']", "3 classes but 2 class_names"),
        ("files = 3", "files: .*dictionary"),
        ("counts = 3", "counts: .*dictionary"),
        ("label_column = 2020-01-01", "label_column: .*string"),
        ("title = nan", "title: .*string"),
        ("classes = nan", "classes: .*finite number"),
        (CARD + "[label_histogram]\ntest = [2, 2]", "3 classes but 2 numbers in .*histogram.test"),
        (CARD + "[label_histogram]\nfit = [2, 2, 2]", "'fit' is not a split"),
        (
            "validation = 'given'\n[counts]\ntrain = 3",
            "validation = 'given' but counts name no val",
        ),
    ],
)
def test_wrong_cards(small: Path, text: str, match: str) -> None:
    write_parquet(small.parent / "outside.parquet", [0, 1, 2])
    (small / "dataset.toml").write_text(text)
    refuse(small, match=match)


def test_unknown_keys_are_kept_and_named(small: Path) -> None:
    (small / "dataset.toml").write_text('colour = "red"\n' + CARD + "[sanity]\nraw = 1.5\n")
    source = FolderSource(small)
    assert source.card.unknown_keys == ["colour", "sanity"]
    assert (source.card.model_extra or {})["sanity"] == {"raw": 1.5}
    with pytest.warns(CardWarning, match=r"small/dataset.toml: .*colour, sanity"):
        source.load()


@pytest.mark.parametrize("value", ["2020-01-01", "nan", "inf", "[1, -inf]", "12:30:00"])
@pytest.mark.parametrize("layout", ["parquet", "folders"])
def test_an_unknown_key_may_hold_anything(tmp_path: Path, value: str, layout: str) -> None:
    if layout == "parquet":
        write_parquet(tmp_path / "small" / "train.parquet", [0, 1])
    else:
        write_classes(tmp_path / "small", {"cat": 5, "dog": 5})
    plain = FolderSource(tmp_path / "small").identity()
    (tmp_path / "small" / "dataset.toml").write_text(f"made = {value}\n")
    source = FolderSource(tmp_path / "small")
    assert source.card.unknown_keys == ["made"]
    assert source.identity() == plain
    with pytest.warns(CardWarning, match="made"):
        source.load()


@pytest.fixture
def broken(small: Path) -> Path:
    sound = [png(picture(i)) for i in range(9)]
    stored = [*sound[:2], b"", *sound[3:6], sound[6][:50], *sound[7:]]
    write_parquet(small / "train.parquet", [0, 1, 2] * 3, images=stored)
    return small


def test_corrupt_images_are_named(broken: Path) -> None:
    refuse(
        broken,
        match=r"small/train.parquet, row 2 \(002.png\) is corrupt \(zero bytes\); "
        r"corrupt images: 2, tolerated: 0 \(--skip-corrupt 2",
    )
    refuse(broken, match="corrupt images: 2, tolerated: 1", skip_corrupt=1)


def test_as_many_corrupt_images_as_tolerated_are_left_out(broken: Path) -> None:
    source = FolderSource(broken)
    dataset = source.load(skip_corrupt=2)
    train = dataset.splits["train"]
    assert train.skipped == 2
    assert dataset.splits["test"].skipped == 0
    assert train.labels.tolist() == [0, 1, 0, 1, 2, 1, 2]
    expected = [np.asarray(picture(i)) for i in (0, 1, 3, 4, 5, 7, 8)]
    assert (train.pixels() == np.stack(expected)).all()
    assert dataset.fingerprint == source.identity()


def test_a_corrupt_file_in_a_class_folder_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 5, "dog": 5})
    (tmp_path / "pets" / "dog" / "zero.jpg").write_bytes(b"")
    refuse(tmp_path / "pets", match=r"pets/dog/zero.jpg is corrupt \(zero bytes\)")
    assert FolderSource(tmp_path / "pets").load(skip_corrupt=1)


def test_a_file_that_is_no_parquet(small: Path) -> None:
    (small / "train.parquet").write_bytes(b"PAR1 not really PAR1")
    refuse(small, match="cannot read .*train.parquet as parquet")


def test_an_image_column_without_bytes(small: Path) -> None:
    rows = {"image": [{"bytes": None, "path": "a.png"}] * 9, "label": [0, 1, 2] * 3}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    pq.write_table(pa.table(rows, schema=schema), small / "train.parquet")
    refuse(small, match=r"row 0 \(a.png\) is corrupt \(no bytes are stored\)")


def test_a_second_load_decodes_nothing(
    small: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FolderSource(small).load().splits["train"].pixels(8)

    def never(_: bytes) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(room, "decode", never)
    dataset = FolderSource(small).load()
    assert dataset.splits["train"].pixels(8).shape == (9, 8, 8, 3)


def test_identity_is_of_content_and_meaning(small: Path, tmp_path: Path) -> None:
    def identity() -> str:
        return FolderSource(small).identity()

    first = identity()
    (small / "dataset.toml").write_text(CARD.replace("free", "other"))
    assert identity() == first
    (small / "dataset.toml").write_text(CARD.replace("mean_per_class", "top1"))
    assert identity() != first
    (small / "dataset.toml").write_text(CARD)
    assert identity() == first
    write_parquet(small / "test.parquet", [0, 1, 2] * 2, seed=5)
    assert identity() != first


def test_identity_sees_a_changed_image_file(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 5, "dog": 5})
    first = FolderSource(tmp_path / "pets").identity()
    picture(77).save(tmp_path / "pets" / "cat" / "000.png")
    assert FolderSource(tmp_path / "pets").identity() != first


def test_identity_is_of_the_rules_for_pixels(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [FolderSource(small), find_source("digits"), find_source("drawn")]
    before = [source.identity() for source in sources]
    monkeypatch.setattr("transferbench.data.dataset.PIXELS_VERSION", 2)
    after = [source.identity() for source in sources]
    assert all(one != two for one, two in zip(before, after, strict=True))


def test_identity_notes_the_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "pets", {"cat": 5, "dog": 5})
    resolved: list[Path] = []
    real = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda p, *a: (resolved.append(p), real(p, *a))[1])
    FolderSource(tmp_path / "pets").identity()
    assert not [path for path in resolved if path.suffix == ".png"]
    noted: list[ClassFolders] = []
    note = ClassFolders.note
    monkeypatch.setattr(ClassFolders, "note", lambda self: (noted.append(self), note(self))[1])
    FolderSource(tmp_path / "pets").identity()
    assert len(noted) == 1


def test_identity_is_remembered(
    tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path / "pets", {"cat": 5, "dog": 5})
    first = FolderSource(tmp_path / "pets").identity()
    monkeypatch.setattr("transferbench.data.class_folders.content_digest", lambda path: "other")
    assert FolderSource(tmp_path / "pets").identity() == first


@pytest.mark.filterwarnings("ignore::transferbench.data.folder.CardWarning")
def test_real_flowers(shared_data: Path) -> None:
    dataset = FolderSource(shared_data / "flowers17").load()
    assert dataset.num_classes == 17
    assert dataset.classes[0] == "daffodil"
    assert dataset.metric == "mean_per_class"
    assert {n: len(s) for n, s in dataset.splits.items()} == {"train": 647, "val": 326, "test": 340}
    assert dataset.card.validation == "given"
    pixels = dataset.splits["test"].pixels(32)
    assert pixels.shape == (340, 32, 32, 3)
    assert 60 < pixels.mean() < 150


@pytest.mark.filterwarnings("ignore::transferbench.data.folder.CardWarning")
def test_real_keywords(shared_data: Path) -> None:
    dataset = FolderSource(shared_data / "corel5k_mini").load()
    assert (dataset.task, dataset.metric, dataset.num_classes) == ("multilabel", "map11", 36)
    assert dataset.splits["train"].labels.shape == (2165, 36)
    assert dataset.splits["test"].labels.sum(axis=0).min() == 10
    assert dataset.splits["train"].native_size is None


def test_every_real_card_holds(shared_data: Path) -> None:
    for folder in sorted(p for p in shared_data.iterdir() if p.is_dir()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            source = FolderSource(folder)
            labels = {name: source._layout.labels(name, source.card) for name in source.card.counts}
        assert {n: len(v) for n, v in labels.items()} == source.card.counts
        assert source.card.licence != "not stated"
        assert not caught
