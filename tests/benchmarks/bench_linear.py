"""The 45 penalties of a linear probe, each certified to a relative gap of 1e-4."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.table import Table

from transferbench.protocols.grids import weight_decays
from transferbench.protocols.logistic import fit_path

CASES = [(2000, 512, 8), (3000, 1280, 10), (3000, 1280, 100)]


def features(n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Draw features as pooled rectified ones are: correlated, skewed, of falling variance."""
    draw = np.random.RandomState(0)
    labels = draw.randint(0, classes, n)
    mixed = draw.randn(classes, d)[labels] * 0.7 + 2 * draw.randn(n, d)
    mixed = mixed * np.arange(1, d + 1) ** -0.7 @ np.linalg.qr(draw.randn(d, d))[0]
    return np.maximum(mixed + 0.3, 0).astype(np.float32), labels


def main() -> None:
    """Print a table of sizes with seconds, Newton steps and the worst gap."""
    table = Table("images", "D", "classes", "seconds", "Newton steps", "worst gap")
    for n, d, classes in CASES:
        x, y = features(n, d, classes)
        start = time.perf_counter()
        points = fit_path(x, y, weight_decays()).points
        seconds = time.perf_counter() - start
        worst = max(np.inf if p.relative_gap is None else p.relative_gap for p in points)
        steps = sum(point.iterations for point in points)
        table.add_row(
            f"{n:,}", f"{d:,}", str(classes), f"{seconds:.1f}", str(steps), f"{worst:.0e}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
