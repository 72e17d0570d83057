"""The smallest images, recipe and board on which the commands do all that they do."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transferbench.cli import main

RECIPE = """
method = "simclr-v1"
data = "folder:images"
epochs = 1
batch_size = 8

[backbone]
name = "resnet10t"

[[views]]
count = 2
size = 32
crop = { scale = [0.4, 1.0] }
flip = 0.5

[optimizer]
name = "sgd"
lr = 0.05
"""

BOARD = """
title = "Mini"
datasets = ["folder:images", "folder:tags"]
pretraining_data = "drawn"

[[models]]
name = "untrained"
backbone_of = "mini.toml"

[[models]]
name = "simclr"
recipe = "mini.toml"

[[protocols]]
name = "linear"
parameters = { count = 3, resamples = 20 }

[[protocols]]
name = "knn"
parameters = { k = 3, resamples = 20 }
"""


def make_images(folder: Path, *, size: int = 32, train: int = 12, test: int = 5) -> Path:
    """Two classes, by colour, in class folders; some noise."""
    random = np.random.default_rng(0)
    for split, number in (("train", train), ("test", test)):
        for label, colour in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(number):
                noise = random.integers(-30, 30, (size, size, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def make_tags(folder: Path) -> Path:
    """A multi-label set of parquet files: to which kNN does not apply."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    random = np.random.default_rng(1)
    for split, number in (("train", 20), ("test", 8)):
        images, labels = [], []
        for _ in range(number):
            tags = random.integers(0, 2, 2)
            colour = np.array([40 + 160 * tags[0], 60, 40 + 160 * tags[1]])
            pixels = np.clip(colour + random.integers(-30, 30, (32, 32, 3)), 0, 255)
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
            labels.append([k for k in (0, 1) if tags[k]])
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"{split}.parquet")
    (folder / "dataset.toml").write_text(
        'name = "tags"\ntask = "multilabel"\nmetric = "map11"\nclasses = 2\n'
        "counts = { train = 20, test = 8 }\n"
        'files = { train = ["train.parquet"], test = ["test.parquet"] }\n'
    )
    return folder


def make_workplace(folder: Path) -> Path:
    """A working directory with images, a recipe and a board."""
    folder.mkdir(parents=True, exist_ok=True)
    make_images(folder / "images")
    make_tags(folder / "tags")
    (folder / "mini.toml").write_text(RECIPE)
    board = folder / "leaderboards" / "mini"
    board.mkdir(parents=True)
    (board / "board.toml").write_text(BOARD)
    return folder


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does, in a process of its own."""
    code = "import sys; from transferbench.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content: what "nothing was written" compares."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Shell:
    """Runs commands in this process and keeps what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.err = ""

    def __call__(self, line: str, code: int = 0) -> str:
        self.capsys.readouterr()
        got = main(shlex.split(line))
        out, self.err = self.capsys.readouterr()
        assert got == code, self.err
        return out

    def json(self, line: str, code: int = 0) -> Any:
        return json.loads(self(f"{line} --json", code))
