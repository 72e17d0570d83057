"""A recipe says everything about a pretraining run; this is its schema.

Importing this module costs no torch: a finished run is recognised by its recipe alone.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from transferbench import registry
from transferbench.augment.settings import Normalization, ViewSettings
from transferbench.backbones.settings import NetworkSettings
from transferbench.errors import UserError, unknown
from transferbench.optim.formula import value_at
from transferbench.optim.settings import OptimizerSettings, ScheduleSettings
from transferbench.pretrain.invalid import invalid
from transferbench.storage import digest, packaged_folders

Precision = Literal["float32", "bfloat16"]

LARGEST_SIDE = 8192
"""Pixels; an exported backbone's input can be no larger."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhaseSettings(_Strict):
    """A later part of a run with views, schedule or learning rate of its own.

    Attributes
    ----------
    from_epoch : int
        The first epoch of the phase, counted from 0; the phase ends where the next begins.
    views : tuple of ViewSettings or None
        None keeps the recipe's.
    schedule : ScheduleSettings or None
        Runs over the epochs of this phase alone; None lets the recipe's schedule run on.
    lr : float or None
        Replaces the optimizer's learning rate, for this batch size; None keeps it.
    """

    from_epoch: int = Field(gt=0)
    views: tuple[ViewSettings, ...] | None = Field(default=None, min_length=1)
    schedule: ScheduleSettings | None = None
    lr: float | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class _Origin:
    """Where a recipe was read: for messages alone, hence equal to every other origin."""

    text: str = field(default="the recipe", compare=False)


class Recipe(_Strict):
    """A pretraining run: method, data, views, network, optimizer, schedule.

    Attributes
    ----------
    method : str
        A registered method.
    data : str
        A data set's name, `folder:PATH` or `catalogue:NAME`; its training images are used.
    epochs, batch_size : int
        Passes over the images; images in one optimizer step. The last incomplete batch of an
        epoch is left out.
    seed : int
        Of the initial weights, the order of images, the views and the method's own chance.
    precision : {"float32", "bfloat16"}
        "bfloat16" computes the networks under autocast; losses and weights stay float32.
    image_size : int or None
        Side in pixels at which the images are held. None: as they are if all are equally large
        squares, else the largest view.
    eval_size : int or None
        Side in pixels at which the finished backbone is evaluated. None: the largest view.
    normalization : Normalization
        Of the views, and of the images when the backbone is evaluated.
    backbone : NetworkSettings
        The network that is trained.
    views : tuple of ViewSettings
        What an image becomes before the networks see it, in the order the method expects.
    phases : tuple of PhaseSettings
        Later parts with settings of their own.
    settings : dict
        The method's own, typed by its `Settings` class.
    optimizer, schedule
        What moves the weights, and how the learning rate moves.
    """

    method: str
    data: str
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Precision = "float32"
    image_size: int | None = Field(default=None, gt=0, le=LARGEST_SIDE)
    eval_size: int | None = Field(default=None, gt=0, le=LARGEST_SIDE)
    normalization: Normalization = Normalization()
    backbone: NetworkSettings
    views: tuple[ViewSettings, ...] = Field(min_length=1)
    phases: tuple[PhaseSettings, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    optimizer: OptimizerSettings
    schedule: ScheduleSettings = ScheduleSettings()
    _origin: _Origin = PrivateAttr(default=_Origin())

    @model_validator(mode="after")
    def _phases_in_order(self) -> Self:
        starts = [0, *(phase.from_epoch for phase in self.phases), self.epochs]
        if any(later <= earlier for earlier, later in pairwise(starts)):
            raise ValueError(
                f"phases: from_epoch must rise and stay below epochs ({self.epochs}), "
                f"not {', '.join(map(str, starts[1:-1]))}"
            )
        return self

    @model_validator(mode="after")
    def _schedules_in_time(self) -> Self:
        stops = [*(phase.from_epoch for phase in self.phases[1:]), self.epochs]
        spans = [("schedule", self.schedule, self.epochs)] + [
            (f"phases.{number}.schedule", phase.schedule, stop - phase.from_epoch)
            for number, (phase, stop) in enumerate(zip(self.phases, stops, strict=False))
            if phase.schedule is not None
        ]
        for where, schedule, epochs in spans:
            _check_schedule(where, schedule, epochs)
        switch = self.optimizer.switch_epoch
        if switch is not None and switch >= self.epochs:
            raise ValueError(
                f"optimizer.switch_epoch ({switch}) must be below epochs ({self.epochs}), "
                "or the optimizer never switches"
            )
        return self

    @property
    def where(self) -> str:
        """The file it was read from, with the changes made to it, as messages name it."""
        return self._origin.text

    @property
    def largest_view(self) -> int:
        """Side of the largest view in pixels."""
        return max(view.size for view in self.views)

    @property
    def evaluation_size(self) -> int:
        """Side in pixels at which the finished backbone is evaluated."""
        return self.eval_size or self.largest_view

    @property
    def data_name(self) -> str:
        """The data set's name without its kind or folder: fit for a folder's name."""
        return re.sub(r"[^\w.+-]+", "-", Path(self.data.split(":", 1)[-1]).name) or "data"

    def plain(self) -> dict[str, Any]:
        """The recipe as nested dictionaries and lists of what TOML can hold."""
        return self.model_dump(mode="json", exclude_none=True)

    def digest(self) -> str:
        """SHA-256 that two recipes share exactly if all their values are equal."""
        return digest(self.plain())


def _check_schedule(where: str, schedule: ScheduleSettings, epochs: int) -> None:
    """Refuse what would have no effect, or no value, within the epochs that a schedule has."""
    if (schedule.epochs or 0) > epochs:
        raise ValueError(f"{where}.epochs ({schedule.epochs}) must not exceed {epochs}")
    epochs = schedule.epochs or epochs
    if (schedule.warmup_epochs or 0) > epochs:
        raise ValueError(
            f"{where}.warmup_epochs ({schedule.warmup_epochs:g}) must not exceed the "
            f"schedule's number of epochs ({epochs})"
        )
    late = [m for m in (*(schedule.milestones or ()), schedule.every or 0) if m >= epochs]
    if late:
        key = "every" if schedule.every else "milestones"
        raise ValueError(
            f"{where}.{key}: the rate would never drop at epoch {late[0]}, for the schedule has "
            f"{epochs} epochs, counted from 0"
        )
    if schedule.formula is not None:
        try:
            for epoch in range(epochs):
                value_at(schedule.formula, epoch, epochs)
        except ValueError as error:
            raise ValueError(f"{where}.formula: {error}") from None


def parse_recipe(data: dict[str, Any], where: str) -> Recipe:
    """Check a recipe's values.

    Parameters
    ----------
    data : dict
        As read from TOML.
    where : str
        Named in the message, e.g. the file.

    Raises
    ------
    UserError
        On a wrong key, type or range: file, key, and the nearest valid key.
    """
    for key, value in _leaves(data):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {key} must be a finite number, not {value}")
    try:
        recipe = Recipe.model_validate(_tupled(data), strict=True)
    except ValidationError as error:
        raise invalid(error, Recipe, where) from None
    if recipe.method not in registry.names("methods"):
        raise unknown("method", recipe.method, registry.names("methods"), where)
    recipe._origin = _Origin(where)
    return recipe


def resolve(recipe: Recipe) -> Recipe:
    """Fill in every default, the method's own included. Imports the method, hence torch.

    Raises
    ------
    UserError
        If `[settings]` does not fit the method.
    """
    schema = registry.load("methods", recipe.method).Settings
    try:
        settings = schema.model_validate(_tupled(recipe.settings), strict=True)
    except ValidationError as error:
        raise invalid(error, schema, recipe.where, "settings") from None
    full = settings.model_dump(mode="json", exclude_none=True)
    return recipe.model_copy(
        update={"settings": _tupled(full), "eval_size": recipe.evaluation_size}
    )


def load_recipe(text: str, *, overrides: Sequence[str] = (), **given: Any) -> Recipe:
    """Read a recipe by name or path.

    Parameters
    ----------
    text : str
        "tiny/swav" (`./recipes/tiny/swav.toml`, then the packaged one), or a path to a file.
    overrides : sequence of str
        "optimizer.lr=0.3", "views.0.size=16": dotted key and TOML value; a bare word is a string.
    **given
        Top-level keys to replace, e.g. `seed=1`; None leaves the recipe's.

    Raises
    ------
    UserError
        If there is no such recipe, or a key or value is wrong.
    """
    path = find_recipe(text)
    data = read_toml(path)
    data.update({key: value for key, value in given.items() if value is not None})
    for override in overrides:
        _override(data, override)
    where = " ".join([_shown(path), *(f"--set {override}" for override in overrides)])
    return parse_recipe(data, where)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    UserError
        If it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {_shown(path)}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{_shown(path)} is not valid TOML: {error}") from error


def dumps(recipe: Recipe) -> str:
    """Return the recipe as TOML text that parses back to an equal recipe."""
    return tomli_w.dumps(recipe.plain())


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Name the keys in which two recipes differ, with both values: "optimizer.lr (0.3 / 0.6)"."""
    ours, theirs = dict(_leaves(one.plain())), dict(_leaves(other.plain()))
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return [f"{key} ({ours.get(key, 'unset')} / {theirs.get(key, 'unset')})" for key in keys]


def recipe_names() -> list[str]:
    """Names of all recipes at hand, e.g. "tiny/swav": `./recipes` and the packaged ones."""
    return sorted({
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in packaged_folders("recipes")
        for path in folder.rglob("*.toml")
    })  # fmt: skip


def find_recipe(text: str) -> Path:
    """Return the file of a recipe given by name or path.

    Raises
    ------
    UserError
        If there is none, with the nearest names.
    """
    for folder in packaged_folders("recipes"):
        named = folder / f"{text}.toml"
        if named.is_file():
            return named
    path = Path(text)
    if path.is_file():
        return path
    if path.suffix == ".toml":
        raise UserError(f"there is no recipe file {text}")
    raise unknown("recipe", text, recipe_names())


def _shown(path: Path) -> str:
    """The path as seen from here, where it lies below."""
    absolute = path.resolve()
    return (
        str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)
    )


def _override(data: dict[str, Any], text: str) -> None:
    """Set one dotted key in nested tables, in place."""
    dotted, equals, value = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise UserError(f"--set {text}: write key=value, e.g. --set optimizer.lr=0.3")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": value.strip()} if re.fullmatch(r"\s*[\w./:@+-]+\s*", value) else {}
    if parsed.keys() != {"value"}:
        raise UserError(
            f"--set {text}: '{value}' is not a TOML value; quote a text, e.g. '\"text\"'"
        )
    place: Any = data
    for depth, key in enumerate(keys):
        inner: int | str = key
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                shown = ".".join(keys[:depth])
                raise UserError(f"--set {text}: {shown} has the positions 0 to {len(place) - 1}")
            inner = int(key)
        elif not isinstance(place, dict):
            raise UserError(f"--set {text}: {'.'.join(keys[:depth])} is a value, not a table")
        if depth == len(keys) - 1:
            place[inner] = parsed["value"]
        else:
            place = place[inner] if isinstance(inner, int) else place.setdefault(inner, {})


def _tupled(value: Any) -> Any:
    """Nested tables with every list a tuple: schemas are frozen and strict about it."""
    if isinstance(value, dict):
        return {key: _tupled(inner) for key, inner in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested tables and lists; a list of plain values is one value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        for position, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{position}" if path else str(position))
    else:
        yield path, value
