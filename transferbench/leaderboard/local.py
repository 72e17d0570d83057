"""The board of evaluations that no board file asked for: ./leaderboards/local."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from transferbench.errors import UserError
from transferbench.leaderboard.board import HOME, Board, BoardFile, read_board, short_name
from transferbench.leaderboard.record import read
from transferbench.storage import in_turn, make_folder, write_atomic

NAME = "local"
TITLE = "Evaluated here"


def local_board() -> Board:
    """Read ./leaderboards/local; an empty board if nothing was evaluated yet.

    Raises
    ------
    UserError
        If its board.toml was edited into something else.
    """
    file = HOME / NAME / "board.toml"
    if not file.is_file():
        return Board(NAME, None, BoardFile(title=TITLE))
    return Board(NAME, file, read_board(file))


def row_name(name: str) -> str:
    """Return a reference's short name as one that a folder and a row can have."""
    return re.sub(r"[^A-Za-z0-9._+-]+-?", "-", name).strip("-.") or "model"


def refuse_equal_names(what: str, entries: Sequence[tuple[str, str]]) -> None:
    """Check that what is evaluated at once differs in its short names.

    Parameters
    ----------
    what : str
        "models" or "data sets".
    entries : sequence of (short name, reference)

    Raises
    ------
    UserError
        If two would write the same records.
    """
    held: dict[str, str] = {}
    for name, text in entries:
        if held.setdefault(name, text) != text:
            raise UserError(
                f"the {what} '{held[name]}' and '{text}' are both called '{name}'; leave one out"
            )


def held_by_other(board: Board, dataset: str, fingerprint: str) -> str:
    """Say why a data set cannot have the column of its short name; empty if it can.

    A column belongs to the reference that made it, which may change its content. Another one may
    take it over if no number of other content stands there, e.g. for a folder that was moved.
    """
    name = short_name(dataset)
    holder = {short_name(text): text for text in board.content.datasets}.get(name, dataset)
    if holder == dataset:
        return ""
    for path in sorted((board.folder / "records").glob(f"*/{name}/*.json")):
        record = read(path).record
        if record and record.kind == "measured" and record.job.dataset.fingerprint != fingerprint:
            return (
                f"the column '{name}' of {board} holds numbers of other data, from '{holder}'; "
                f"give '{dataset}' under another name or move {path.parent} away"
            )
    return ""


def extended(
    board: Board,
    *,
    models: Iterable[tuple[str, str]],
    datasets: Iterable[str],
    protocols: Iterable[str],
    seeds: Iterable[int],
) -> Board:
    """Return the local board with more rows, columns, tables and seeds; nothing is written.

    Parameters
    ----------
    models : iterable of (name, reference)
        A reference that is there under another name, e.g. a run that was made anew, moves to
        the new one: its earlier records stay on disk and leave the table.
    """
    content = board.content
    chosen = dict(models)
    replaced = set(chosen.values())
    kept = [m for m in content.models if m.name not in chosen and m.reference not in replaced]
    rows: list[dict[str, Any]] = [m.model_dump(exclude_defaults=True) for m in kept]
    rows += [{"name": name, "reference": text} for name, text in chosen.items()]
    asked = {short_name(text): text for text in datasets}
    sets = {short_name(text): text for text in content.datasets} | asked
    tables = [p.model_dump(exclude_defaults=True) for p in content.protocols]
    there = {p.name for p in content.protocols}
    tables += [{"name": name} for name in protocols if name not in there]
    return Board(
        board.name,
        board.file,
        BoardFile.model_validate(
            {
                "title": content.title or TITLE,
                # The default seed of an empty board is nobody's choice.
                "seeds": sorted({*(content.seeds if content.models else ()), *seeds}),
                "datasets": list(sets.values()),
                "pretraining_data": content.pretraining_data,
                "models": rows,
                "protocols": tables,
            }
        ),
    )


def save_extended(
    *,
    models: Sequence[tuple[str, str]],
    datasets: Sequence[str],
    protocols: Sequence[str],
    seeds: Sequence[int],
) -> Board:
    """Extend ./leaderboards/local/board.toml; processes that do so at once lose nothing."""
    folder = HOME / NAME
    make_folder(folder)
    with in_turn(folder):
        before = local_board()
        board = extended(before, models=models, datasets=datasets, protocols=protocols, seeds=seeds)
        text = (
            "# Written by `transferbench evaluate` without --board; yours to edit.\n"
            + tomli_w.dumps(board.content.model_dump(mode="json", exclude_defaults=True))
        )
        file = folder / "board.toml"
        if before.file is None or before.content != board.content:
            write_atomic(file, text)
    return Board(NAME, file, board.content)


def existing_board() -> Board:
    """Read the local board.

    Raises
    ------
    UserError
        If nothing was evaluated yet.
    """
    board = local_board()
    if board.file is None:
        raise UserError(
            f"there is no board {Path(HOME / NAME)} yet; `transferbench evaluate --all` makes it, "
            "or name one with --board"
        )
    return board
