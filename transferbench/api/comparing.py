"""Whether two models differ on the same test images by more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferbench.api.boards import whole_grid
from transferbench.api.machine import RUNS, find_root
from transferbench.errors import UserError, unknown
from transferbench.leaderboard.board import find_board
from transferbench.leaderboard.jobs import Column, Job
from transferbench.leaderboard.local import existing_board
from transferbench.leaderboard.predictions import kept_predictions
from transferbench.leaderboard.record import Record
from transferbench.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from transferbench.measures.significance import McNemar, PairedBootstrap

COUNTED = ("fresh", "missing")
"""States whose record stands for its job; "missing" where only the model is not at hand."""


@dataclass(frozen=True)
class Pair:
    """Two models on one data set under one protocol.

    Attributes
    ----------
    value_a, value_b : float
        As recorded, shares.
    bootstrap : PairedBootstrap
        Of the difference a - b in the data set's own metric, over test images (few-shot: over
        episodes).
    mcnemar : McNemar or None
        None where a prediction is not simply right or wrong.
    p_holm, mcnemar_p_holm : float or None
        The two p values, corrected for the data sets of the protocol.
    """

    protocol: str
    dataset: str
    seed: int
    metric: str
    n: int
    value_a: float
    value_b: float
    bootstrap: PairedBootstrap
    mcnemar: McNemar | None
    p_holm: float = 1.0
    mcnemar_p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What can be compared of two models, and why the rest cannot."""

    board: str
    models: tuple[str, str]
    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[str, str, str], ...]

    def plain(self) -> dict[str, Any]:
        """The comparison as JSON values, as `compare --json` prints it."""
        return {
            "board": self.board,
            "models": list(self.models),
            "comparisons": [asdict(pair) for pair in self.pairs],
            "left_out": [
                {"protocol": protocol, "dataset": dataset, "reason": reason}
                for protocol, dataset, reason in self.left_out
            ],
        }


def compare(
    first: str,
    second: str,
    *,
    board: str | None = None,
    datasets: Sequence[str] = (),
    protocols: Sequence[str] = (),
    seed: int | None = None,
    runs: str | Path = RUNS,
    data_root: str | Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two models of a board by their per-image test predictions; nothing is run.

    Parameters
    ----------
    first, second : str
        Short names of models of the board.
    board : str, optional
        Default ./leaderboards/local.
    datasets, protocols : sequences of str
        Only these; default all that both models have numbers for.
    seed : int, optional
        Default the first of the board's seeds for which both have a number.

    Raises
    ------
    UserError
        On an unknown name, or if nothing can be compared, with the first reason.
    """
    found = existing_board() if board is None else find_board(board)
    grid = whole_grid(found, Path(runs), find_root(data_root))
    names = [entrant.name for entrant in grid.entrants]
    for name in (first, second):
        if name not in names:
            raise unknown("model", name, names, str(found))
    if first == second:
        raise UserError(f"'{first}' stands twice: name two different models")
    columns = [column for column in grid.columns if not column.published]
    _known("data set", datasets, [column.name for column in columns], str(found))
    _known("protocol", protocols, [task.name for task in grid.tasks], str(found))
    _known("seed", [] if seed is None else [str(seed)], map(str, grid.seeds), str(found))
    entrants = [entrant for entrant in grid.entrants if entrant.name in (first, second)]
    tasks = [task for task in grid.tasks if not protocols or task.name in protocols]
    chosen = [column for column in columns if not datasets or column.name in datasets]
    jobs = replace(grid, entrants=entrants, columns=chosen, tasks=tasks).jobs()
    truths = _Truths(progress or Progress())
    pairs: list[Pair] = []
    left_out: list[tuple[str, str, str]] = []
    for task in tasks:
        mine = []
        for column in chosen:
            here = [j for j in jobs if j.task.name == task.name and j.column.name == column.name]
            if not here:
                continue
            try:
                mine.append(_pair(here, first, second, seed, truths))
            except _LeftOut as reason:
                left_out.append((task.name, column.name, str(reason)))
        pairs += _corrected(mine)
    if not pairs:
        why = f"{left_out[0][1]}, {left_out[0][0]}: {left_out[0][2]}" if left_out else "no jobs"
        raise UserError(f"nothing of '{first}' and '{second}' can be compared: {why}")
    return Comparison(found.name, (first, second), tuple(pairs), tuple(left_out))


class _LeftOut(Exception):
    """Why two records cannot be compared."""


class _Truths:
    """Labels of test splits, each loaded once."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._known: dict[str, np.ndarray[Any, Any]] = {}

    def of(self, column: Column) -> np.ndarray[Any, Any]:
        """Return the test labels of a data set."""
        if column.name not in self._known:
            try:
                loaded = column.look_again().load(skip_corrupt=0, progress=self.progress)
            except UserError as error:
                raise _LeftOut(str(error)) from error
            self._known[column.name] = loaded.splits["test"].labels
        return self._known[column.name]


def _known(what: str, asked: Iterable[str], valid: Iterable[str], where: str) -> None:
    there = list(valid)
    for name in asked:
        if name not in there:
            raise unknown(what, name, there, where)


def _pair(jobs: Sequence[Job], first: str, second: str, seed: int | None, truths: _Truths) -> Pair:
    column = jobs[0].column
    a, b = _records(jobs, first, second, seed)
    if a.job.protocol.version != b.job.protocol.version or a.n != b.n:
        raise _LeftOut("the two numbers come from different versions or test images")
    if not a.predictions or not b.predictions:
        raise _LeftOut("the protocol keeps no predictions")
    kept = []
    for record in (a, b):
        assert record.predictions is not None
        outputs = kept_predictions(record.predictions)
        if outputs is None:
            raise _LeftOut(
                f"the predictions of '{record.job.model.name}' are not in the cache; move its "
                "record away and evaluate again"
            )
        kept.append(outputs)
    assert a.value is not None
    assert b.value is not None
    assert a.metric is not None
    bootstrap, mcnemar = _tests(a, kept[0], kept[1], column, truths)
    return Pair(
        protocol=a.job.protocol.name,
        dataset=column.name,
        seed=a.job.seed,
        metric=a.metric,
        n=len(kept[0]),
        value_a=a.value,
        value_b=b.value,
        bootstrap=bootstrap,
        mcnemar=mcnemar,
    )


def _records(
    jobs: Sequence[Job], first: str, second: str, seed: int | None
) -> tuple[Record, Record]:
    """Return the records of both models for a seed that both have."""
    by_seed: dict[int, dict[str, Record]] = {}
    for job in jobs:
        record = job.record
        if record is None or job.state not in COUNTED or record.kind != "measured":
            continue
        # Where the model is not at hand no key was compared: the data must be the same at least.
        if record.job.dataset.fingerprint == job.column.fingerprint:
            by_seed.setdefault(job.seed, {})[job.entrant.name] = record
    for number in dict.fromkeys(job.seed for job in jobs):
        both = by_seed.get(number, {})
        if len(both) == 2 and seed in (None, number):
            return both[first], both[second]
    lacking = [name for name in (first, second) if not any(name in r for r in by_seed.values())]
    if not jobs[0].column.fingerprint:
        raise _LeftOut(jobs[0].column.reason or "the data set is not at hand")
    raise _LeftOut(
        f"'{lacking[0]}' has no fresh number" if lacking else "no seed has a number of both"
    )


def _tests(
    record: Record,
    a: np.ndarray[Any, Any],
    b: np.ndarray[Any, Any],
    column: Column,
    truths: _Truths,
) -> tuple[PairedBootstrap, McNemar | None]:
    from transferbench.measures.metrics import score
    from transferbench.measures.significance import from_resamples, mcnemar, paired_bootstrap
    from transferbench.measures.uncertainty import bootstrap_scores

    seed = record.job.seed
    if a.shape != b.shape:
        raise _LeftOut("the two have predictions of different shapes")
    if a.ndim == 1 and a.dtype.kind == "f":
        # Accuracies of the same episodes.
        return paired_bootstrap(a, b, seed=seed), None
    labels = truths.of(column)
    if len(labels) != len(a):
        raise _LeftOut(f"predictions of {len(a)} images, but the data set has {len(labels)}")
    paper = record.job.protocol.parameters.get("mode") == "paper"
    form: Any = "code" if paper else "devkit"
    metric: Any = record.metric
    right = None if a.ndim == 2 else mcnemar(a == labels, b == labels)
    if metric == "top1":
        return paired_bootstrap(a == labels, b == labels, seed=seed), right
    resampled = [bootstrap_scores(metric, labels, x, seed=seed, form=form) for x in (a, b)]
    difference = score(metric, labels, a, form=form) - score(metric, labels, b, form=form)
    return from_resamples(difference, resampled[0] - resampled[1]), right


def _corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """Correct the p values of one protocol for its data sets."""
    import numpy as np

    from transferbench.measures.significance import holm

    if not pairs:
        return []
    over_all = holm(np.array([pair.bootstrap.p for pair in pairs]))
    tested = [i for i, pair in enumerate(pairs) if pair.mcnemar is not None]
    exact = holm(np.array([test.exact_p for p in pairs if (test := p.mcnemar) is not None]))
    by_place = dict(zip(tested, exact, strict=True))
    return [
        replace(
            pair,
            p_holm=float(p),
            mcnemar_p_holm=float(by_place[i]) if i in by_place else None,
        )
        for i, (pair, p) in enumerate(zip(pairs, over_all, strict=True))
    ]


def comparison_lines(comparison: Comparison) -> list[str]:
    """One line a data set, in percent, with the meaning of the columns below."""
    from transferbench.api.printing import aligned

    a, b = comparison.models
    rows = [("protocol", "data set", "metric", a, b, "a - b", "95 %", "p", "b / c", "McNemar p")]
    for pair in comparison.pairs:
        boot, test = pair.bootstrap, pair.mcnemar
        exact = "" if pair.mcnemar_p_holm is None else f"{pair.mcnemar_p_holm:.3g}"
        rows.append(
            (
                pair.protocol,
                pair.dataset,
                pair.metric,
                f"{100 * pair.value_a:.2f}",
                f"{100 * pair.value_b:.2f}",
                f"{100 * boot.difference:+.2f}",
                f"{100 * boot.low:+.2f} .. {100 * boot.high:+.2f}",
                f"{pair.p_holm:.3g}",
                "" if test is None else f"{test.b} / {test.c}",
                exact,
            )
        )
    lines = aligned(rows)
    lines.append(
        "Paired bootstrap over the same test images; b / c: images that only the first, only the "
        "second gets right; p values are Holm-corrected over the data sets of a protocol."
    )
    lines += [
        f"left out: {dataset}, {protocol}: {why}" for protocol, dataset, why in comparison.left_out
    ]
    return lines
