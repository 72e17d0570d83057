"""Logistic regression over the 45 penalties: against scikit-learn at equal work, and how it grows.

`python -m tests.benchmarks.bench_linear --rows lbfgs newton-cg` runs some rows, each side as often
as `--repeats` says and in turns, the median counting. Unless asked otherwise only those of minutes
are run. `--images` and `--penalties` make a row smaller; the table says what it measured. Features
are EfficientNet-Lite0's of the real sets beside the checkout, at 128 px.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.real_features import Features, drawn_features, real_features, spectrum_of
from transferbench.errors import UserError
from transferbench.protocols.grids import weight_decays
from transferbench.protocols.logistic import Path, fit_path
from transferbench.protocols.newton import Point

DEFAULT, TIGHT = 1e-4, 1e-8


@dataclass(frozen=True)
class Row:
    """One comparison: on what, with which of scikit-learn's solvers, and the ratios hoped for.

    `targets` are (tolerance, ratio) pairs. Of a scikit-learn side of more than twenty minutes
    `measured` penalties are, equally far apart, and the time is taken as many times.
    """

    data: str
    images: int
    solver: str
    targets: tuple[tuple[float, float], ...]
    measured: int | None = None


ROWS = {
    "lbfgs": Row("cifar10", 3200, "lbfgs", ((DEFAULT, 10),)),
    "newton-cg": Row("cifar10", 3200, "newton-cg", ((DEFAULT, 30), (TIGHT, 15))),
    "caltech": Row("caltech101_mini", 2942, "lbfgs", ((DEFAULT, 10),)),
    "tiny-imagenet": Row("tiny_imagenet32", 32000, "lbfgs", ((DEFAULT, 10),), measured=3),
}
PENALTIES = 45
OTHERS = ("products", "largest", "growth")
MINUTES = ("lbfgs", "products", "growth")


def grid(count: int) -> list[float]:
    """Return `count` of the 45 penalties, weakest first, equally far apart, the ends not first."""
    all_of_them = weight_decays()
    places = [round((i + 0.5) * len(all_of_them) / count - 0.5) for i in range(count)]
    return [all_of_them[place] for place in places]


def ours(x: Features, y: Features, decays: list[float], tol: float, device: str = "cpu") -> Path:
    """Solve with this package's solver."""
    return fit_path(x, y, decays, tol=tol, device=device)


def sweep_of_scikit_learn(
    x: Features, y: Features, decays: list[float], solver: str
) -> list[tuple[Features, Features]]:
    """Return (weights (K, D), intercepts (K,)) of each penalty.

    One estimator, each fit from the one before: for lbfgs with defaults from the weakest on,
    as the transfer paper's code does; for newton-cg from the strongest on, with tol = 1e-10, the
    loosest at which it meets nearly all gaps of 1e-4.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver=solver, warm_start=True)
    if solver == "newton-cg":
        model.set_params(tol=1e-10)
    order = sorted(range(len(decays)), key=decays.__getitem__, reverse=solver == "newton-cg")
    found: dict[int, tuple[Features, Features]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in order:
            model.set_params(C=1 / decays[i]).fit(x, y)
            found[i] = (model.coef_.copy(), model.intercept_.copy())
    return [found[i] for i in range(len(decays))]


def excess(x: Features, y: Features, found: Any, best: Point) -> float:
    """Return (J - min J) / min J of a solution, min J a point's certified lower bound."""
    weights, intercepts = found
    z = x @ weights.T + intercepts
    top = z.max(axis=1)
    losses = top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(y)), y]
    value = losses.sum() + best.weight_decay / 2 * (weights**2).sum()
    lower = best.objective / (1 + (best.relative_gap or 0))
    return float(value / lower - 1)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call took, and what it returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def flops_of(work: Callable[[], Any]) -> int:
    """Return the floating-point operations of a call's matrix products in torch."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def pairs_of(flops: int, n: int, d: int, classes: int) -> float:
    """Return how many pairs of products X'(X W') cost as much, in the span of the centred data."""
    return flops / (4 * n * min(n - 1, d) * classes)


def worst_gap(path: Path) -> float:
    """Return the largest certified relative gap of a path; infinite where one is not certified."""
    return max(np.inf if p.relative_gap is None else p.relative_gap for p in path.points)


def describe(x: Features, y: Features, decays: list[float]) -> str:
    """Say what a row was measured on."""
    shown = "" if len(decays) > 3 else f" ({listed(decays)})"
    return f"{len(x):,} x {x.shape[1]:,}, K = {y.max() + 1}, {len(decays)} penalties{shown}"


def listed(decays: list[float]) -> str:
    """Return penalties as text."""
    return ", ".join(f"{decay:.1e}" for decay in decays)


def compare(name: str, row: Row, options: argparse.Namespace, table: Table) -> None:
    """Time both sides in turns, and judge both by the same certified optimum."""
    x32, y = real_features(row.data, options.images or row.images, options.side)
    # scikit-learn keeps float32, and its solutions are then only good to 1e-7; the paper's cast.
    x = x32.astype(np.float64)
    decays = grid(options.penalties or PENALTIES)
    some = decays if row.measured is None else grid(row.measured)
    share = len(decays) / len(some)
    # What is loaded and chosen once is neither side's time.
    sweep_of_scikit_learn(x[:200, :8], y[:200], [1e3], row.solver)
    ours(x32[:200, :8], y[:200], [1e3], DEFAULT)
    theirs, seconds = [], []
    paths: dict[float, Path] = {}
    own: dict[float, list[float]] = {tol: [] for tol, _ in row.targets}
    for _ in range(options.repeats):
        took, theirs = timed(lambda: sweep_of_scikit_learn(x, y, some, row.solver))
        seconds.append(took * share)
        for tol, taken in own.items():
            took, paths[tol] = timed(functools.partial(ours, x32, y, decays, tol))
            taken.append(took)
    best = ours(x, y, some, min(own) / 100)
    off = [excess(x, y, found, point) for found, point in zip(theirs, best.points, strict=True)]
    other = statistics.median(seconds)
    sampled = f", {share:g} times that of {listed(some)}" if share > 1 else ""
    for tol, target in row.targets:
        mine = statistics.median(own[tol])
        table.add_row(
            name, describe(x, y, decays),
            f"{row.solver} {other:,.2f} s" + sampled,
            f"{sum(value > DEFAULT for value in off)} above {DEFAULT:g}, worst {max(off):.0e}",
            f"{mine:,.2f} s", f"{worst_gap(paths[tol]):.0e} (asked {tol:g})",
            f"{other / mine:.1f}x", f">= {target:g}x",
        )  # fmt: skip


def comparisons(names: list[str], options: argparse.Namespace, console: Console) -> None:
    """Print the table of the rows that have another side."""
    table = Table(
        "row", "problem", "scikit-learn", "its gaps", "fit_path", "worst certified gap",
        "ratio", "target",
    )  # fmt: skip
    for name in names:
        compare(name, ROWS[name], options, table)
    threads = torch.get_num_threads()
    console.print(f"seconds, median of {options.repeats}, {threads} threads")
    console.print(table)


def hessian_products_of(work: Callable[[], Any]) -> int:
    """Return how often a call has scikit-learn multiply by a Hessian: a pair of products each."""
    from sklearn.linear_model._linear_loss import LinearModelLoss

    count, real = 0, LinearModelLoss.gradient_hessian_product

    def counted(*arguments: Any, **options: Any) -> Any:
        gradient, product = real(*arguments, **options)

        def one_more(vector: Any) -> Any:
            nonlocal count
            count += 1
            return product(vector)

        return gradient, one_more

    with mock.patch.object(LinearModelLoss, "gradient_hessian_product", counted):
        work()
    return count


def products(options: argparse.Namespace, console: Console) -> None:
    """Print how many pairs of products with the features the path took, by what they cost."""
    x, y = real_features("cifar10", options.images or 3200, options.side)
    decays, classes = grid(options.penalties or PENALTIES), int(y.max()) + 1
    table = Table("problem", "solver", "FLOPs of products", "pairs", "Newton steps", "target")
    for tol in (DEFAULT, TIGHT):
        paths: list[Path] = []
        flops = flops_of(lambda t=tol, p=paths: p.append(ours(x, y, decays, t)))  # type: ignore[misc]
        pairs = pairs_of(flops, *x.shape, classes)
        steps = sum(point.iterations for point in paths[0].points)
        table.add_row(
            describe(x, y, decays), f"fit_path, {tol:g}", f"{flops:.2e}", f"{pairs:,.0f}",
            str(steps), "<= 1,000",
        )  # fmt: skip
    sweep = functools.partial(sweep_of_scikit_learn, x.astype(float), y, decays, "newton-cg")
    plain = hessian_products_of(sweep)
    table.add_row(describe(x, y, decays), "newton-cg, 1e-10", "", f"{plain:,}", "", "")
    console.print("all matrix products, set-up too, as pairs X'(XW') of equal FLOPs")
    console.print("(newton-cg: conjugate-gradient steps alone)")
    console.print(table)


def peak(device: str) -> float:
    """Return the FLOPs a second of a large float64 product."""
    a = torch.randn(2048, 2048, dtype=torch.float64, device=device)
    best = 0.0
    for _ in range(4):
        took, _ = timed(lambda: float((a @ a)[0, 0]))
        best = max(best, 2 * 2048**3 / took)
    return best


def largest(options: argparse.Namespace, console: Console) -> None:
    """Print what the transfer paper's largest data set takes (Food-101: 75,750 images)."""
    real, _ = real_features("cifar10", 3200 if options.images is None else options.images)
    n, d = (75_750, 2048) if options.images is None else (options.images, 2048 // 8)
    x, y = drawn_features(spectrum_of(real), n, d, 101)
    decays = grid(options.penalties or PENALTIES)
    took, path = timed(lambda: ours(x, y, decays, DEFAULT, options.device))
    table = Table("problem", "device", "seconds", "hours", "worst gap", "converged")
    done = sum(point.converged for point in path.points)
    table.add_row(
        describe(x, y, decays), options.device, f"{took:,.1f}", f"{took / 3600:.2f}",
        f"{worst_gap(path):.0e}", f"{done} of {len(decays)}",
    )  # fmt: skip
    console.print(table)
    if options.roofline:
        flops = flops_of(lambda: ours(x, y, decays, DEFAULT, options.device))
        rate = peak(options.device)
        console.print(
            f"{flops:.2e} FLOPs of products, {pairs_of(flops, n, d, 101):,.0f} pairs, at the "
            f"measured {rate / 1e9:,.0f} GFLOP/s at least {flops / rate:,.1f} s: "
            f"{flops / rate / took:.0%} of the roofline"
        )


def growth(options: argparse.Namespace, console: Console) -> None:
    """Print by which power of n, d, K and the number of penalties the cost grows.

    Beside the seconds stand the FLOPs of the products, the cost model's main term: 4 n d K a pair
    and 4 n d^2 once. Labels are the set's 200, taken modulo K; columns are a random draw.
    """
    n = (options.images or 3200) // 2
    d, k, p = 640, 25, (options.penalties or 44) // 2
    x, y = real_features("tiny_imagenet32", 2 * n, options.side)
    x = x[:, np.random.RandomState(0).permutation(x.shape[1])]

    def problem(n: int, d: int, k: int, p: int) -> Callable[[], Path]:
        return lambda: ours(x[:n, :d], y[:n] % k, grid(p), DEFAULT)

    base = (n, d, k, p)
    doubled = [tuple(2 * v if i == j else v for j, v in enumerate(base)) for i in range(4)]
    sizes = [base, *doubled]
    seconds: list[list[float]] = [[] for _ in sizes]
    for _ in range(options.repeats):
        for taken, size in zip(seconds, sizes, strict=True):
            taken.append(timed(problem(*size))[0])
    flops = [flops_of(problem(*size)) for size in sizes]
    medians = [statistics.median(taken) for taken in seconds]
    table = Table("doubled", "n", "d", "K", "penalties", "seconds", "FLOPs", "exponents")
    for i, (title, size) in enumerate(zip(("-", "n", "d", "K", "penalties"), sizes, strict=True)):
        powers = [np.log2(side[i] / side[0]) for side in (medians, flops)]
        exponents = "" if i == 0 else f"seconds {powers[0]:.2f}, FLOPs {powers[1]:.2f}"
        table.add_row(
            title, *(f"{v:,}" for v in size), f"{medians[i]:.2f}", f"{flops[i]:.2e}", exponents
        )
    console.print(table)


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables of the rows asked for."""
    parser = argparse.ArgumentParser(prog="bench_linear", description=__doc__)
    names = [*ROWS, *OTHERS]
    parser.add_argument("--rows", nargs="+", choices=names, default=list(MINUTES), metavar="ROW",
                        help=f"of {', '.join(names)}; default {' '.join(MINUTES)}")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=1, help="of each side")
    parser.add_argument("--images", type=int, help="fewer than the row's")
    parser.add_argument("--penalties", type=int, help="another number of them than the row's")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--device", default="cpu", help="of row `largest`")
    parser.add_argument("--roofline", action="store_true", help="run `largest` again, counting")
    options = parser.parse_args(list(arguments))
    console = Console(width=180)
    others = {"products": products, "largest": largest, "growth": growth}
    try:
        if compared := [name for name in options.rows if name in ROWS]:
            comparisons(compared, options, console)
        for name in options.rows:
            if name in others:
                console.print(f"{name}:")
                others[name](options, console)
    except UserError as error:
        sys.exit(f"bench_linear: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
