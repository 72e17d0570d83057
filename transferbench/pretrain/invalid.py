"""A schema's complaint as the one sentence a user needs: file, key, nearest valid key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from transferbench.errors import UserError, nearest


def invalid(
    error: ValidationError, model: type[BaseModel], where: str, prefix: str = ""
) -> UserError:
    """Turn a pydantic error into a `UserError` of one sentence.

    Parameters
    ----------
    error : ValidationError
        Of validating `model`; a misspelt key is told before what else is wrong, because a
        misspelling also makes the right key missing.
    model : type of BaseModel
        Its fields give the valid keys.
    where : str
        The file, as the user named it.
    prefix : str
        Path of the model inside the file, e.g. "settings".
    """
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    path = tuple(problem["loc"])
    key = ".".join([*([prefix] if prefix else []), *map(str, path)])
    if problem["type"] == "extra_forbidden":
        valid = _keys(model, path[:-1])
        near = nearest(str(path[-1]), valid)
        if near:
            hint = "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
        else:
            hint = "valid here: " + (", ".join(valid) or "nothing")
        return UserError(f"{where}: unknown key '{key}'; {hint}")
    if problem["type"] == "missing":
        return UserError(f"{where}: the key '{key}' is missing")
    if problem["type"] == "value_error":
        # A rule of our own, whose sentence is whole.
        said = problem["msg"].removeprefix("Value error, ")
        return UserError(f"{where}: {key}: {said}" if key else f"{where}: {said}")
    given = problem["input"]
    shown = "" if isinstance(given, dict | list) else f", not {given!r}"
    said = problem["msg"].removeprefix("Input should be ")
    if said == problem["msg"]:
        return UserError(f"{where}: {key}: {said}")
    if isinstance(given, str) and (near := nearest(given, _choices(problem))):
        shown += f"; did you mean '{near[0]}'?"
    return UserError(f"{where}: {key} must be {said}{shown}")


def _choices(problem: Any) -> list[str]:
    """The values of a choice, taken from the message "'a', 'b' or 'c'"."""
    expected = str(problem.get("ctx", {}).get("expected", ""))
    return expected.split("'")[1::2] if problem["type"] == "literal_error" else []


def _keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Names of the keys allowed at a path inside a model."""
    found: set[type[BaseModel]] = {model}
    for step in path:
        if isinstance(step, str):
            fields = [m.model_fields[step] for m in found if step in m.model_fields]
            # An element that is no field is the tag of a union, which pydantic puts in the path.
            if fields:
                found = {m for field in fields for m in _models(field.annotation)}
    return sorted({name for m in found for name in m.model_fields})


def _models(annotation: Any) -> set[type[BaseModel]]:
    """All models inside a type, e.g. of `tuple[ViewSettings, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for part in get_args(annotation) for model in _models(part)}
