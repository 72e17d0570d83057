"""Evaluating large JPEGs: images per second, and whether memory grows with their number.

Generated images of 500 x 375 pixels (as ImageNet's are on average) lie in one folder a class, or in
the rows of one parquet file (a single row group) or of arrow files as the Hub's copies have them.
For each number of images a process of its own runs `transferbench evaluate` with `knn` and a small
untrained network at 224 pixels: every image is decoded once, kept, read in batches, and voted on.
Memory is the process's peak of resident pages, mapped files included.

`python -m tests.benchmarks.bench_decode 50000 --layout parquet` measures other numbers and layouts;
50,000 images need 8 GB of disk for pixels, in `--scratch` if not in the usual place. The images are
copies of a hundred different ones, but each is read, decoded and kept as any other.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

DIFFERENT = 100
CLASSES = 10
MODEL = "random:mobilenetv3_small_050@224"
LAYOUTS = ("folder", "parquet", "arrow")
ROWS = 100
"""Of a record batch; what the `datasets` library takes for images."""


def jpegs() -> list[bytes]:
    """Photograph-like noise: smooth at first, with fine grain, about 60 kB a file."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(DIFFERENT):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + random.normal(0, 12, (375, 500, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


def write_folder(folder: Path, split: str, made: list[bytes], count: int) -> None:
    """One folder a class; equal images are hard links."""
    for i in range(count):
        place = folder / split / f"class{i % CLASSES}" / f"{i:06}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        first = folder.parent / f"{i % DIFFERENT}.jpg"
        if not first.exists():
            first.write_bytes(made[i % DIFFERENT])
        os.link(first, place)


def _batches(made: list[bytes], count: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, count, ROWS):
        rows = range(start, min(start + ROWS, count))
        images = [{"bytes": made[i % DIFFERENT], "path": None} for i in rows]
        columns = {"image": pa.array(images), "label": pa.array([i % CLASSES for i in rows])}
        yield pa.record_batch(columns)


def write_parquet(folder: Path, split: str, made: list[bytes], count: int) -> None:
    """One row group, as a frame that is saved at once has."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_batches(list(_batches(made, count)))
    pq.write_table(table, folder / f"{split}.parquet", row_group_size=count, use_dictionary=False)


def write_arrow(folder: Path, split: str, made: list[bytes], count: int) -> None:
    """As `save_to_disk` writes it."""
    (folder / split).mkdir(parents=True)
    first = next(_batches(made, 1))
    path = str(folder / split / "data-0.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, first.schema) as stream:
        for batch in _batches(made, count):
            stream.write_batch(batch)
    state = {"_data_files": [{"filename": "data-0.arrow"}]}
    (folder / split / "state.json").write_text(json.dumps(state))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))


def measure(folder: Path) -> None:
    """Evaluate on one folder in this process; print what it cost as JSON."""
    import timm  # noqa: F401
    import torch  # noqa: F401

    from transferbench.cli import main as command

    # Its records go below the working directory.
    os.chdir(folder.parent)
    before, started = peak(), time.perf_counter()
    line = ["evaluate", "--model", MODEL, "--dataset", f"folder:{folder}", "--protocol", "knn"]
    assert command([*line, "--device", "cpu", "--quiet"]) == 0
    print(json.dumps({"before": before, "peak": peak(), "seconds": time.perf_counter() - started}))


def peak() -> float:
    """Peak of this process's resident pages in MB."""
    try:
        # Unlike getrusage's, it does not begin with the parent's.
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(each.split()[1] for each in lines if each.startswith("VmHWM"))) / 1e3
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1e6 if sys.platform == "darwin" else 1e3)


def run(layout: str, count: int, made: list[bytes], scratch: Path) -> dict[str, Any]:
    """Make `count` images and evaluate on them in a process of its own."""
    folder = scratch / "set"
    for split, part in (("train", count - count // 10), ("test", count // 10)):
        globals()[f"write_{layout}"](folder, split, made, part)
    cache = scratch / "cache"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_decode", "--measure", str(folder)],
        env=os.environ | {"TRANSFERBENCH_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for kind in ("pixels", "features"):
        found[kind] = sum(p.stat().st_size for p in (cache / kind).iterdir()) / 1e6
    return found


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench_decode")
    parser.add_argument("images", type=int, nargs="*", default=[500, 2000])
    parser.add_argument("--layout", choices=LAYOUTS, action="append")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.measure:
        measure(asked.measure)
        return
    table = Table(title=f"knn of {MODEL} on 500 x 375 JPEGs, a process a row")
    for title in ("layout", "images", "images/s", "peak MB", "imports", "features", "pixels, MB"):
        table.add_column(title, justify="left" if title == "layout" else "right")
    made = jpegs()
    for layout in asked.layout or LAYOUTS:
        for count in asked.images:
            with tempfile.TemporaryDirectory(dir=asked.scratch) as name:
                found = run(layout, count, made, Path(name))
            numbers = (count / found["seconds"], *(found[k] for k in ("peak", "before")))
            numbers += (found["features"], found["pixels"])
            table.add_row(layout, f"{count:,}", *(f"{n:,.0f}" for n in numbers))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
