"""A board says which models meet which data sets under which protocols, and with which seeds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from transferbench.backbones.settings import NetworkSettings
from transferbench.errors import UserError, nearest, unknown
from transferbench.protocols.variants import variant
from transferbench.storage import packaged_folders

Seed = int
HOME = Path("leaderboards")
"""Where boards are looked for first, and where all records and tables go."""

SHORT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
"""Names of models and protocols are names of folders and files."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BoardModel(_Strict):
    """A row: a short name and where the model comes from (exactly one of four).

    Attributes
    ----------
    name : str
        Row of the table, folder of the records.
    recipe : str or None
        Recipe, by name or path, from which `pretrain --board` makes the model.
    set : tuple of str
        Changes to that recipe, e.g. "epochs=8".
    reference : str or None
        Any model reference, e.g. "timm:resnet50", "file:PATH@ARCH", "random:resnet18@32".
    backbone_of : str or None
        A recipe whose network, untrained, is the model, at that recipe's evaluation size.
    backbone : NetworkSettings or None
        A network spelt out (name, stem, args as in a recipe), untrained.
    eval_size : int or None
        Side in pixels at which `backbone` is evaluated.
    """

    name: str = Field(pattern=SHORT_NAME)
    recipe: str | None = None
    set: tuple[str, ...] = ()
    reference: str | None = None
    backbone_of: str | None = None
    backbone: NetworkSettings | None = None
    eval_size: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = (self.recipe, self.reference, self.backbone_of, self.backbone)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError(
                f"the model '{self.name}' needs one of recipe, reference, backbone_of, backbone"
            )
        if self.set and self.recipe is None and self.backbone_of is None:
            raise ValueError(f"the model '{self.name}' has 'set' but no recipe to change")
        if (self.backbone is None) != (self.eval_size is None):
            raise ValueError(f"the model '{self.name}' needs backbone and eval_size together")
        return self


class BoardProtocol(_Strict):
    """A table: a short name, the registered protocol, its parameters.

    Without a protocol the name is that of one, or of one of `protocols.variants`, whose parameters
    then come before those given.
    """

    name: str = Field(pattern=SHORT_NAME)
    protocol: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)

    @property
    def registered(self) -> str:
        """The registered protocol's name."""
        return self.protocol or variant(self.name)[0]

    @property
    def chosen(self) -> dict[str, Any]:
        """The parameters, those of the name included."""
        return self.parameters if self.protocol else {**variant(self.name)[1], **self.parameters}


class BoardFile(_Strict):
    """What board.toml holds.

    Attributes
    ----------
    published : tuple of str
        Columns of numbers quoted from a publication, shown beside what is measured. Their records
        stand under the first seed; nothing is run for them.
    """

    title: str = ""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    datasets: tuple[str, ...] = ()
    published: tuple[Annotated[str, Field(pattern=SHORT_NAME)], ...] = ()
    pretraining_data: str | None = None
    models: tuple[BoardModel, ...] = ()
    protocols: tuple[BoardProtocol, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for what, names in (
            ("model", [m.name for m in self.models]),
            ("data set", [*map(short_name, self.datasets), *self.published]),
            ("protocol", [p.name for p in self.protocols]),
            ("seed", [str(s) for s in self.seeds]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"the {what} '{twice[0]}' stands twice")
        if any(seed < 0 for seed in self.seeds):
            raise ValueError("seeds must not be negative")
        return self


@dataclass(frozen=True)
class Board:
    """A board that was found.

    Attributes
    ----------
    name : str
        Its folder's name.
    file : Path or None
        The board.toml that was read; None for the local board before its first record.
    content : BoardFile
        What it holds.
    """

    name: str
    file: Path | None
    content: BoardFile

    @property
    def folder(self) -> Path:
        """Where records and README go: ./leaderboards/NAME, wherever the board was found."""
        return HOME / self.name

    @property
    def title(self) -> str:
        """The title, or the name."""
        return self.content.title or self.name

    def __str__(self) -> str:
        return f"the board '{self.name}'"


def short_name(dataset: str) -> str:
    """Return the column of a data set given by name, `folder:PATH` or `catalogue:NAME`."""
    kind, colon, rest = dataset.partition(":")
    if not colon:
        return dataset
    name = Path(rest).resolve().name if kind == "folder" else rest
    return re.sub(r"[^A-Za-z0-9._+-]+-?", "-", name).strip("-.") or "data"


def board_names() -> list[str]:
    """Names of all boards at hand: those in ./leaderboards and the packaged ones, sorted."""
    found = (
        file.parent.name
        for root in packaged_folders("leaderboards")
        for file in root.glob("*/board.toml")
    )
    return sorted(set(found))


def find_board(text: str) -> Board:
    """Read a board by name (./leaderboards/NAME, then the packaged one) or path.

    A path is a board.toml, which is called by its folder's name, another TOML file, which is
    called by its stem, or a folder with a board.toml in it.

    Raises
    ------
    UserError
        If there is none (with the nearest names), if it is wrong (with file, key and the nearest
        valid key), or if another board of ./leaderboards has the same name.
    """
    if re.match(SHORT_NAME, text):
        for root in packaged_folders("leaderboards"):
            if (file := root / text / "board.toml").is_file():
                return Board(text, file, read_board(file))
    path = Path(text)
    file = path / "board.toml" if path.is_dir() else path
    if not file.is_file():
        if path.suffix == ".toml" or path.is_dir():
            raise UserError(f"there is no board file {file}")
        raise unknown("board", text, board_names())
    name = file.resolve().parent.name if file.name == "board.toml" else file.stem
    if not re.match(SHORT_NAME, name):
        raise UserError(f"{file}: '{name}' is no name for a board; use letters, digits, '-', '_'")
    own = HOME / name / "board.toml"
    if own.is_file() and not own.samefile(file):
        raise UserError(
            f"{file} would share the records of {own}, which has the same name; rename one of them"
        )
    return Board(name, file, read_board(file))


def read_board(file: Path) -> BoardFile:
    """Read and check a board file.

    Raises
    ------
    UserError
        In one sentence: file, key, what is wrong, the nearest valid key.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid TOML: {error}") from error
    try:
        return BoardFile.model_validate(data)
    except ValidationError as error:
        raise _explain(error, file) from error


_TABLES: dict[str, type[BaseModel]] = {
    "models": BoardModel,
    "protocols": BoardProtocol,
    "backbone": NetworkSettings,
}


def _explain(error: ValidationError, file: Path) -> UserError:
    """Turn a schema's complaint into one sentence; a misspelt key comes before its consequences."""
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    path = tuple(problem["loc"])
    key = _dotted(path)
    if problem["type"] == "extra_forbidden":
        tables = [_TABLES[step] for step in path[:-1] if step in _TABLES]
        fields = sorted((tables[-1] if tables else BoardFile).model_fields)
        near = nearest(str(path[-1]), fields)
        hint = f"did you mean '{near[0]}'?" if near else "valid here: " + ", ".join(fields)
        return UserError(f"{file}: unknown key '{key}'; {hint}")
    if problem["type"] == "too_short":
        return UserError(f"{file}: {key} must not be empty")
    if problem["type"] == "missing":
        return UserError(f"{file}: the key '{key}' is missing")
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return UserError(f"{file}: {said}")
    given = problem["input"]
    shown = "" if isinstance(given, dict | list) else f", not {given!r}"
    if problem["type"] == "string_pattern_mismatch":
        return UserError(
            f"{file}: {key} must be letters, digits, '.', '_', '+' and '-' only{shown}"
        )
    wanted = said.removeprefix("Input should be ")
    return UserError(f"{file}: {key} must be {wanted}{shown}")


def _dotted(path: Iterable[int | str]) -> str:
    """("models", 0, "name") as "models.0.name"."""
    return ".".join(map(str, path))
