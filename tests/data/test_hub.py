"""Fetching from the Hub, and what was fetched, by the commands, against a stand-in server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.data.hub_server import Hub, Repository, serving
from tests.data.makers import picture, png, write_parquet

PINNED, LATER = "a" * 40, "b" * 40
CARD = """
name = "{name}"
metric = "top1"
task = "multiclass"
classes = {classes}
{more}
[counts]
train = {train}
test = {test}
[hub]
path = "org/{repository}"
revision = "{revision}"
splits = {{ {splits} }}
{columns}
"""
# Runs commands one after the other in one process, which imports the library once.
SCRIPT = """
import contextlib, io, json, sys
from transferbench.cli import main
done = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


def parquet(folder: Path, labels: list[int], seed: int) -> bytes:
    path = folder / "made.parquet"
    write_parquet(path, labels, seed=seed)
    return path.read_bytes()


def tar(count: int, seed: int) -> bytes:
    """A webdataset: `cls` is an integer without names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for i in range(count):
            for suffix, data in (("jpg", png(picture(seed + i))), ("cls", str(i % 2).encode())):
                entry = tarfile.TarInfo(f"s{i:04}.{suffix}")
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    folder = tmp_path_factory.mktemp("made")
    first = {
        "README.md": b"---\nlicense: mit\n---\n",
        "data/train-00000-of-00002.parquet": parquet(folder, [0, 1, 0, 1], 1),
        "data/train-00001-of-00002.parquet": parquet(folder, [1, 1], 2),
        "data/validation-00000-of-00001.parquet": parquet(folder, [0, 1], 3),
    }
    moved = {**first, "data/train-00000-of-00002.parquet": parquet(folder, [1, 1, 1, 1], 4)}
    name = "data/validation-00000-of-00001.parquet"
    broken = {**first, name: first[name][: len(first[name]) // 2]}
    pictures = {
        f"{split}/{name}/{i}.png": png(picture(300 + 10 * i + ord(name)))
        for split, count in (("train", 4), ("test", 2))
        for name in "ab"
        for i in range(count)
    }
    tars = {"train/0.tar": tar(6, 100), "test/0.tar": tar(2, 200), "classnames.txt": b"a\nb\n"}
    return Hub(
        {
            "org/food": Repository({PINNED: first, LATER: moved}),
            "org/tars": Repository({PINNED: tars}),
            "org/pictures": Repository({PINNED: pictures}),
            "org/broken": Repository({PINNED: broken}),
            "org/cut": Repository({PINNED: first}, cut={name}),
            "org/script": Repository({PINNED: {"script.py": b"import datasets", "README.md": b""}}),
        }
    )


def card(root: Path, name: str, repository: str = "food", **changes: Any) -> None:
    """A data set's folder with a card alone."""
    values = {
        "name": name,
        "repository": repository,
        "classes": 2,
        "train": 6,
        "test": 2,
        "revision": PINNED,
        "splits": 'train = ["train"], test = ["validation"]',
        "columns": "",
        "more": "",
    }
    (root / name).mkdir(parents=True)
    (root / name / "dataset.toml").write_text(CARD.format(**values | changes))


class Machine:
    """A cache, a data root, and commands in a process of their own."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.hub = folder, hub
        self.root = folder / "root"
        self.root.mkdir()

    def __call__(self, *lines: str, offline: bool = False) -> list[tuple[int, str, str]]:
        commands = [[*line.split(), "--data-root", str(self.root)] for line in lines]
        environment = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRANSFERBENCH_CACHE": str(self.folder / "cache"),
        }
        with serving(self.hub) if not offline else _nobody(self.hub):
            environment["HF_ENDPOINT"] = self.hub.url
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, json.dumps(commands)],
                cwd=self.folder,
                env=os.environ | environment,
                capture_output=True,
                text=True,
                check=True,
            )
        return [tuple(each) for each in json.loads(done.stdout)]

    @property
    def noted(self) -> list[Path]:
        """The notes of what counts as fetched."""
        return sorted((self.folder / "cache" / "fetched").glob("*.json"))


class _nobody:
    """No server at the address where one was."""

    def __init__(self, hub: Hub) -> None:
        hub.requests.clear()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)


def test_pinned_copies_are_fetched_once_and_then_read_offline(machine: Machine) -> None:
    card(machine.root, "meals")
    columns = 'image_column = "jpg"\nlabel_column = "cls"'
    card(machine.root, "tars", "tars", splits='train=["train"], test=["test"]', columns=columns)
    # All images of both splits, of which a fifth is for testing.
    pool = {"train": 7, "test": 1, "splits": 'train = ["train", "validation"]'}
    card(machine.root, "pool", "food", more="pooled = true", **pool)
    card(machine.root, "counts", "food", train=7)
    both = 'train=["train"], test=["test"]'
    card(machine.root, "pictures", "pictures", train=8, test=4, splits=both)
    before, fetched, again, listed, counts = machine(
        "check " + str(machine.root / "meals"),
        "fetch meals tars pool pictures",
        "fetch meals",
        "list datasets --json",
        "check " + str(machine.root / "counts"),
    )
    assert before[0] == 2
    assert "(make it with: transferbench fetch folder:" in before[2]
    assert fetched[0] == 0, fetched[2]
    assert fetched[1].splitlines() == [
        "meals: fetched org/food at aaaaaaaaaaaa",
        "tars: fetched org/tars at aaaaaaaaaaaa",
        # The same copy serves two sets.
        "pool: org/food at aaaaaaaaaaaa is at hand",
        "pictures: fetched org/pictures at aaaaaaaaaaaa",
    ]
    assert "is at hand" in again[1]
    rows = {row["name"]: row for row in json.loads(listed[1])["datasets"]}
    assert all(rows[name]["at_hand"] for name in ("meals", "tars", "pool", "counts"))
    assert "train has 6 images, but the card says 7" in counts[2]
    # The branch has moved on; the pinned revision was asked for.
    asked = [line for line in machine.hub.requests if "/org/food/" in line]
    assert any(PINNED in line for line in asked)
    assert not any(LATER in line or "/main/" in line for line in asked)

    found, tars, pool_, pictures, evaluated = machine(
        "check " + str(machine.root / "meals"),
        "check " + str(machine.root / "tars"),
        "check " + str(machine.root / "pool"),
        "check " + str(machine.root / "pictures"),
        "evaluate --model random:resnet10t@32 --dataset meals --protocol knn --json --device cpu",
        offline=True,
    )
    assert not machine.hub.requests
    assert "6 train, 2 test images" in found[1], found[2]
    assert "6 train, 2 test images" in tars[1], tars[2]
    assert "7 train, 1 test images" in pool_[1], pool_[2]
    # Rows of a repository of image files name these instead of holding their bytes.
    assert "8 train, 4 test images" in pictures[1], pictures[2]
    job = json.loads(evaluated[1])["jobs"][0]
    assert (job["state"], job["n"]) == ("fresh", 2)


def test_what_cannot_be_fetched_is_one_line_and_leaves_nothing_fetched(machine: Machine) -> None:
    card(machine.root, "absent", "nowhere")
    card(machine.root, "revision", "food", revision="c" * 40)
    card(machine.root, "broken", "broken")
    card(machine.root, "cut", "cut")
    card(machine.root, "script", "script")
    card(machine.root, "split", "food", splits='train = ["train"], test = ["test"]')
    expected = {
        "absent": r"the Hub has no org/nowhere at revision aaaaaaaaaaaa, or it is gated",
        "revision": r"the Hub has no org/food at revision cccccccccccc, or it is gated",
        "broken": "org/broken at revision aaaaaaaaaaaa could not be fetched",
        "cut": "org/cut at revision aaaaaaaaaaaa could not be fetched",
        "script": "org/script at revision aaaaaaaaaaaa could not be fetched",
        "split": "has the splits train, validation, but no 'test'",
        "drawn": "has no copy on the Hub to fetch, and none is needed",
        "dtd": "has no copy on the Hub to fetch; to get it: python -c",
    }
    done = machine(*(f"fetch {name}" for name in expected))
    for (code, out, err), (name, sentence) in zip(done, expected.items(), strict=True):
        assert (code, out) == (2, ""), name
        last = err.strip().splitlines()[-1]
        assert last.startswith("error: "), err
        assert sentence in last
    assert not machine.noted
    # The server mends; the same command succeeds.
    machine.hub.repositories["org/cut"].cut.clear()
    assert machine("fetch cut")[0][0] == 0
    assert len(machine.noted) == 1
    # What was cut short in the library's cache is no longer at hand, and made anew.
    arrow = Path(json.loads(machine.noted[0].read_text())["train"][0][0])
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[:-100])
    lost, mended, check = machine(
        "check " + str(machine.root / "cut"), "fetch cut", "check " + str(machine.root / "cut")
    )
    assert "not at hand" in lost[2]
    assert mended[0] == 0, mended[2]
    assert check[0] == 0, check[2]
    assert len(arrow.read_bytes()) == len(whole)
