"""Drawing the embedded sets, reading them again, and what raw pixels reach on the tasks."""

from __future__ import annotations

import os
import tempfile
import time
import warnings

import numpy as np

from transferbench.data.drawn import DRAWN, SHAPES, TEXTURES


def main() -> None:
    """Print seconds for drawing and reading, then top-1 of logistic regression on raw pixels."""
    known = os.environ.get("TRANSFERBENCH_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRANSFERBENCH_CACHE"] = folder
        try:
            for source in (DRAWN, SHAPES, TEXTURES):
                splits = source.load().splits.values()
                for what in ("drawn", "read"):
                    start = time.perf_counter()
                    count = sum(len(split.pixels()) for split in splits)
                    seconds = time.perf_counter() - start
                    print(f"{source.name:<16}{count:>6} images {what:<6}{seconds:>8.3f} s")
            for source in (SHAPES, TEXTURES):
                print(f"{source.name:<16}raw-pixel logistic regression {_raw(source):.1%}")
        finally:
            os.environ.pop("TRANSFERBENCH_CACHE")
            if known is not None:
                os.environ["TRANSFERBENCH_CACHE"] = known


def _raw(source: object) -> float:
    from sklearn.linear_model import LogisticRegression

    splits = source.load().splits  # type: ignore[attr-defined]
    pixels = {n: s.pixels().reshape(len(s), -1).astype(np.float64) / 255 for n, s in splits.items()}
    mean, spread = pixels["train"].mean(axis=0), pixels["train"].std(axis=0)
    scaled = {name: (values - mean) / spread for name, values in pixels.items()}
    cut = len(scaled["train"]) * 4 // 5
    train, labels = scaled["train"], splits["train"].labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = max(
            (1e-4, 1e-3, 1e-2),
            key=lambda c: (
                LogisticRegression(C=c, max_iter=100)
                .fit(train[:cut], labels[:cut])
                .score(train[cut:], labels[cut:])
            ),
        )
        model = LogisticRegression(C=best, max_iter=100).fit(train, labels)
    return float(model.score(scaled["test"], splits["test"].labels))
