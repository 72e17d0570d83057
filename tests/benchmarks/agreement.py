"""The linear scores of a board's records beside scikit-learn's, solved apart at a tight tolerance.

`python -m tests.benchmarks.agreement real --models lite0` takes each record of `linear` that
is there, fits scikit-learn's Newton-CG at the record's weight decay to the same features of train
and validation, and scores the test split; and so does `fit_path`, closer to the optimum than the
record's tolerance, to tell an image at the border. Features come from the cache or are extracted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from tests.benchmarks.real_features import SHARED
from transferbench.backbones.reference import parse_reference
from transferbench.data.sources import find_source
from transferbench.errors import UserError
from transferbench.leaderboard.board import find_board
from transferbench.leaderboard.record import Record, read_all
from transferbench.measures.metrics import Array, Floats, score
from transferbench.protocols.features import gather
from transferbench.protocols.logistic import fit_path

TIGHT = 1e-8
TOLERANCE = 1e-10
"""At which Newton-CG is within 1e-4 of nearly all optima; its default leaves many far off."""


def scores_of_scikit_learn(x: Array, labels: Array, test: Array, decay: float) -> Floats:
    """Return decision values (M, K) of test features (M, D); each label apart for multilabel."""
    if labels.ndim == 1:
        values: Floats = fitted(x, labels, decay).decision_function(test)
        return values if values.ndim == 2 else np.stack([-values, values], axis=1)
    columns = np.zeros((len(test), labels.shape[1]))
    for k, label in enumerate((labels > 0).T):
        if 0 < label.sum() < len(label):
            columns[:, k] = fitted(x, label, decay).decision_function(test)
    return columns


def fitted(x: Array, labels: Array, decay: float) -> Any:
    """Return scikit-learn's estimator, fitted."""
    model = LogisticRegression(C=1 / decay, solver="newton-cg", tol=TOLERANCE, max_iter=1000)
    return model.fit(x, labels)


def again(record: Record, data_root: Path) -> tuple[float, float, float, int]:
    """Return scikit-learn's score on a record's test split, its seconds, our tight one, and D."""
    backbone = parse_reference(record.job.model.reference, seed=record.job.seed).load("cpu")
    dataset = find_source(record.job.dataset.name, data_root=data_root).load()
    if dataset.fingerprint != record.job.dataset.fingerprint:
        raise UserError(f"the data set '{dataset.name}' is not that of the record")
    x, labels = gather(backbone, dataset, ("train", "val"))
    test, truth = gather(backbone, dataset, ("test",))
    decay = record.details["weight_decay"]
    start = time.perf_counter()
    found = scores_of_scikit_learn(x.astype(np.float64), labels, test.astype(np.float64), decay)
    seconds = time.perf_counter() - start
    (tight,) = fit_path(x, labels, [decay], task=dataset.task, tol=TIGHT).points
    own = score(dataset.metric, truth, tight.scores(test))
    return score(dataset.metric, truth, found), seconds, own, x.shape[1]


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table; the scores of two exact solvers differ by no more than 0.1 point."""
    parser = argparse.ArgumentParser(prog="agreement", description=__doc__)
    parser.add_argument("board", nargs="?", default="real")
    parser.add_argument("--models", nargs="+", help="of the board; default all")
    parser.add_argument("--datasets", nargs="+", help="of the board; default all")
    parser.add_argument("--data-root", type=Path, default=SHARED / "data")
    options = parser.parse_args(list(arguments))
    table = Table(
        "model", "data set", "metric", "D", "weight decay", "record", f"at {TIGHT:g}",
        "scikit-learn", "points", "its seconds",
    )  # fmt: skip
    worst = 0.0
    try:
        records, _ = read_all(find_board(options.board).folder)
        for record in records.values():
            job = record.job
            chosen = (not options.models or job.model.name in options.models) and (
                not options.datasets or job.dataset.name in options.datasets
            )
            if job.protocol.name != "linear" or record.value is None or not chosen:
                continue
            value, seconds, own, dimension = again(record, options.data_root)
            off = 100 * (value - own)
            worst = max(worst, abs(off))
            table.add_row(
                job.model.name, job.dataset.name, str(record.metric), str(dimension),
                f"{record.details['weight_decay']:.2e}", f"{100 * record.value:.2f}",
                f"{100 * own:.2f}", f"{100 * value:.2f}", f"{off:+.3f}", f"{seconds:,.1f}",
            )  # fmt: skip
    except UserError as error:
        sys.exit(f"agreement: {error}")
    Console(width=140).print(table)
    print(f"{len(table.rows)} records, the largest difference {worst:.3f} points")


if __name__ == "__main__":
    main(sys.argv[1:])
