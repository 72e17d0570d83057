"""Results as lines for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transferbench.api.boards import Evaluation
from transferbench.api.pretraining import Pretrained
from transferbench.leaderboard.jobs import Job
from transferbench.leaderboard.units import shown


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of texts as lines with their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return [line.rstrip() for line in padded]


def pretrained_lines(done: Sequence[Pretrained]) -> list[str]:
    """One line a run, or one for all if nothing was to do."""
    if done and all(each.already for each in done):
        if len(done) == 1:
            return [f"nothing to do: {done[0].folder} is finished"]
        folders = ", ".join(sorted({each.folder.parent.as_posix() for each in done}))
        return [f"nothing to do: all {len(done)} runs in {folders} are finished"]
    return [
        f"{each.folder}: {'was finished' if each.already else each.state}"
        f"{f', {each.seconds:.0f} s' if each.seconds else ''}"
        for each in done
    ]


def pretraining_problems(done: Sequence[Pretrained]) -> list[str]:
    """Why runs failed or were refused: each reason once, after its runs unless it names them."""
    found: dict[str, list[str]] = {}
    for each in done:
        if each.problem:
            found.setdefault(each.problem, []).append(each.folder.as_posix())
    return [
        problem if folders[0] in problem else f"{', '.join(folders)}: {problem}"
        for problem, folders in found.items()
    ]


def evaluation_lines(evaluation: Evaluation, *, dry_run: bool = False) -> list[str]:
    """One line a job with its number, or one for all if nothing was to do."""
    jobs = evaluation.jobs
    if not jobs:
        return [f"nothing to do: {evaluation.none}"]
    if not dry_run and not evaluation.ran and all(job.state == "fresh" for job in jobs):
        return [f"nothing to do: all {len(jobs)} jobs of '{evaluation.board}' are fresh"]
    rows = [("model", "data set", "protocol", "seed", "state", "metric", "value")]
    rows += [
        (job.entrant.name, job.column.name, job.task.name, str(job.seed), job.state, *_number(job))
        for job in jobs
    ]
    verb = "would run" if dry_run else "ran"
    count = evaluation.todo if dry_run else evaluation.ran
    return [*aligned(rows), f"{verb} {count} of {len(jobs)} jobs: {evaluation.states}"]


def complaints(jobs: Iterable[Job]) -> list[str]:
    """What keeps jobs from being fresh, each reason once, with the command that helps."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.reason:
            continue
        help_ = f"; make it with: {job.command}" if job.command else ""
        if job.state == "failed" and not job.failed_now:
            help_ = "; --retry-failed runs it again"
        found.setdefault(f"{job.reason}{help_}", []).append(job)
    lines = []
    for reason, those in found.items():
        first = those[0]
        state = "failed" if first.failed_now else first.state
        which = f"{state}: {first.title}" if len(those) == 1 else f"{len(those)} jobs {state}"
        lines.append(f"{which}: {reason}")
    return lines


def listed_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line a row: its values without their keys; below it, indented, what needs more room."""
    if not rows:
        return []
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in _BELOW))
    lines = aligned([[_text(key, row.get(key)) for key in keys] for row in rows])
    return [
        text
        for row, line in zip(rows, lines, strict=True)
        for text in (line, *(f"    {said}" for said in _below(row)))
    ]


# Of a data set: told in sentences below its line.
_BELOW = ("where", "looked", "get", "licence", "problem")


def _below(row: dict[str, Any]) -> list[str]:
    said = []
    if row.get("where") not in (None, "", row.get("source")):
        said.append(f"in {row['where']}")
    if row.get("licence"):
        said.append(f"licence: {row['licence']}")
    if row.get("looked"):
        said.append(f"looked in {', '.join(row['looked'])}")
    if row.get("problem"):
        said.append(f"problem: {row['problem']}")
    if row.get("get"):
        said.append(f"get it: {row['get']}")
    return said


def _text(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "at_hand":
        return "at hand" if value else "not at hand"
    if key == "classes":
        return f"{value} classes" if value else ""
    if key == "seconds":
        return f"{value:.0f} s"
    if key == "seed":
        return f"seed {value}"
    if key == "parameters":
        return ", ".join(f"{name} = {given}" for name, given in value.items())
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items())
    return str(value)


def _number(job: Job) -> tuple[str, str]:
    record = job.record
    if record is None or record.value is None:
        return "", ""
    unit = shown(record.metric)
    error = "" if record.standard_error is None else f" ± {unit * record.standard_error:.2f}"
    return str(record.metric), f"{unit * record.value:.2f}{error}"
