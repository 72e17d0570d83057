"""Large JPEGs to cached pixels: images per CPU second, and the memory that it takes.

Generated images of 500 x 375 pixels (as ImageNet's are on average) lie in one folder a class. For
each number of images a process of its own loads the set, which decodes every image once, fills the
cache at 224 pixels, and then reads all pixels in batches as feature extraction does. Resident
memory is the process's peak, mapped pages included, so it shows whether anything grows with the
number of images; `BENCH_IMAGES=50000` measures the whole of it. Image files are hard links to a
few hundred different ones, but each is read, decoded and kept as any other.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

DIFFERENT = 200
BATCH = 64
SIZE = 224


def make_images(folder: Path, count: int) -> None:
    """Photograph-like noise: smooth at first, with fine grain, about 60 kB a file."""
    random = np.random.default_rng(0)
    made = folder.parent / "made"
    made.mkdir(exist_ok=True)
    for i in range(DIFFERENT):
        path = made / f"{i}.jpg"
        if not path.exists():
            coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            smooth = np.asarray(
                Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
            )
            grain = random.normal(0, 12, (375, 500, 3))
            noisy = np.clip(smooth + grain, 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(path, quality=85)
    for split, part in (("train", count - count // 10), ("test", count // 10)):
        for i in range(part):
            place = folder / split / f"class{i % 10}" / f"{i:06}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(made / f"{i % DIFFERENT}.jpg", place)


def measure(folder: Path) -> None:
    """Load, decode and read one folder; print what it cost as JSON."""
    from transferbench.data.dataset import Wanted
    from transferbench.data.images import rows
    from transferbench.data.sources import find_source

    before = _peak()
    started = time.process_time()
    dataset = find_source(f"folder:{folder}").load(wanted=Wanted(SIZE))
    decoded = time.process_time() - started
    total = 0
    for split in dataset.splits.values():
        pixels = split.pixels(SIZE)
        for start in range(0, len(pixels), BATCH):
            total += int(rows(pixels, start, start + BATCH)[:, 0, 0, 0].sum())
    print(json.dumps({"cpu": decoded, "before": before, "peak": _peak(), "sum": total}))


def _peak() -> float:
    """Peak resident memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Print the table."""
    counts = [int(n) for n in os.environ.get("BENCH_IMAGES", "500,2000,8000").split(",")]
    table = Table(title="500 x 375 JPEGs to pixels of 224 (one decoding), a process a row")
    for title in ("images", "images / CPU s", "peak MB", "of that imports", "pixels in cache, MB"):
        table.add_column(title, justify="right")
    # Hard links and the cache need one file system with room for the pixels.
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
        for count in counts:
            folder = Path(name) / str(count)
            make_images(folder, count)
            cache = Path(name) / f"cache-{count}"
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.bench_decode", str(folder)],
                env=os.environ | {"TRANSFERBENCH_CACHE": str(cache)},
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            kept = sum(p.stat().st_size for p in (cache / "pixels").iterdir()) / 1e6
            table.add_row(
                f"{count:,}",
                f"{count / found['cpu']:,.0f}",
                f"{found['peak']:,.0f}",
                f"{found['before']:,.0f}",
                f"{kept:,.0f}",
            )
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    else:
        main()
