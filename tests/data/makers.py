"""Small data folders that the tests write."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, width: int = 12, height: int = 12) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    path: Path, labels: Sequence[Any], *, images: Sequence[bytes] | None = None, seed: int = 0
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = images or [png(picture(1000 * seed + i)) for i in range(len(labels))]
    column = "labels" if isinstance(labels[0], list) else "label"
    rows = {
        "image": [{"bytes": b, "path": f"{i:03}.png"} for i, b in enumerate(images)],
        column: labels,
    }
    pq.write_table(pa.table(rows), path)


def write_classes(root: Path, classes: dict[str, int], *, seed: int = 0) -> None:
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(seed + 100 * number + i).save(root / name / f"{i:03}.png")
