"""What the `datasets` library writes to disk, read without it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.makers import picture, png
from transferbench.data.dataset import Card
from transferbench.data.folder import FolderSource
from transferbench.data.sources import summaries
from transferbench.data.tables import TableFolder
from transferbench.errors import UserError

CARD = Card(name="bees", metric="top1", classes=3)
LABELS = {"train": [0, 1, 2, 0, 1, 2, 0, 1], "validation": [2, 1], "test": [0, 2, 1]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `save_to_disk` wrote, train in two files."""
    import datasets

    folder = tmp_path_factory.mktemp("made") / "bees"
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
            "note": datasets.Value("string"),
        }
    )
    splits = {}
    for seed, (name, labels) in enumerate(LABELS.items()):
        images = [{"bytes": png(picture(100 * seed + i)), "path": None} for i in range(len(labels))]
        columns = {"image": images, "label": labels, "note": ["x"] * len(labels)}
        splits[name] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(splits).save_to_disk(str(folder), num_shards={"train": 2} | dict.fromkeys(
        ("validation", "test"), 1))  # fmt: skip
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(written, tmp_path / "bees"))


def test_a_folder_that_save_to_disk_wrote(folder: Path) -> None:
    dataset = FolderSource(folder).load()
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.card.counts == {"train": 8, "val": 2, "test": 3}
    assert dataset.card.validation == "given"
    found = {name: split.labels.tolist() for name, split in dataset.splits.items()}
    assert found == {"train": LABELS["train"], "val": [2, 1], "test": [0, 2, 1]}
    drawn = np.stack([np.asarray(picture(i)) for i in range(8)])
    assert (dataset.splits["train"].pixels() == drawn).all()
    listed = {s.name: s for s in summaries(folder.parent)}["bees"]
    assert (listed.at_hand, listed.kind) == (True, "folder")


def test_a_dataset_toml_beside_it_is_its_card(folder: Path) -> None:
    (folder / "dataset.toml").write_text('metric = "mean_per_class"\n[counts]\ntrain = 9\n')
    with pytest.raises(UserError, match="train has 8 images, but the card says 9"):
        FolderSource(folder).load()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ("cut", r"cannot read .*data-00000-of-00001.arrow|corrupt"),
        ("missing", r"data-00001-of-00002.arrow is missing, but state.json beside it names it"),
        ("state", "is not as save_to_disk writes it"),
        ("outside", "is missing, but state.json beside it names it"),
    ],
)
def test_torn_tables(folder: Path, damage: str, match: str) -> None:
    state = folder / "test" / "state.json"
    if damage == "cut":
        path = folder / "test" / "data-00000-of-00001.arrow"
        path.write_bytes(path.read_bytes()[:-700])
    elif damage == "missing":
        (folder / "train" / "data-00001-of-00002.arrow").unlink()
    elif damage == "state":
        state.write_text(state.read_text()[:20])
    else:
        # A name that leads out of the folder is not followed.
        (folder / "secret.arrow").write_bytes(b"")
        values = json.loads(state.read_text())
        values["_data_files"] = [{"filename": "../secret.arrow"}]
        state.write_text(json.dumps(values))
    with pytest.raises(UserError, match=match) as caught:
        FolderSource(folder).load()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells resident memory")
@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_walking_many_images_keeps_few_in_memory(kind: str, tmp_path: Path) -> None:
    """40 MB in one row group, or as many mapped: little of it is held at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def held() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        mapped = next(line for line in lines if line.startswith("RssFile")).split()[1]
        return int(mapped) * 1024 + pa.total_allocated_bytes()

    path = tmp_path / f"train.{kind}"
    images = [{"bytes": np.random.bytes(100_000), "path": ""} for _ in range(20)] * 20
    table = pa.table({"image": images, "label": [0, 1] * 200})
    if kind == "parquet":
        pq.write_table(table, path, use_dictionary=False, write_batch_size=20)
        assert pq.ParquetFile(path).num_row_groups == 1
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=50)
    del table
    walk = TableFolder(tmp_path, {"train": (path,)}).images("train", CARD)
    assert len(walk) == 400
    before = held()
    assert max(held() - before for _ in walk) < 15_000_000
