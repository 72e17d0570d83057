"""Reference texts: `ARCH[@SIZE][?options]` to a network and its input, and back."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import parse_qsl, quote

from pydantic import ValidationError

from transferbench.backbones.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Interpolation,
    NetworkSettings,
    Preprocessing,
    Triple,
)
from transferbench.errors import UserError, unknown
from transferbench.storage import canonical_json

FORMS = "timm:ARCH, file:PATH@ARCH, run:FOLDER or random:ARCH"
_PLAIN = '{}[]:,"'  # what JSON needs and a query may hold as it is
_NETWORK_OPTIONS = ("stem", "args")
_INPUT_OPTIONS = {
    "size": "input_size",
    "mean": "mean",
    "std": "std",
    "interpolation": "interpolation",
}


def random_reference(
    settings: NetworkSettings,
    size: int,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
    interpolation: Interpolation = "bicubic",
) -> str:
    """Return the `random:` text of a recipe's network at its evaluation size (pixels)."""
    options: dict[str, Any] = {}
    if settings.stem != "standard":
        options["stem"] = settings.stem
    if settings.args:
        options["args"] = settings.args
    options |= {"mean": list(mean), "std": list(std), "interpolation": interpolation}
    texts = {k: v if isinstance(v, str) else canonical_json(v) for k, v in options.items()}
    query = "&".join(f"{key}={quote(text, _PLAIN)}" for key, text in texts.items())
    return f"random:{settings.name}@{size}?{query}"


def parse_text(text: str, rest: str) -> tuple[NetworkSettings, dict[str, Any]]:
    """Read `ARCH[@SIZE][?options]` into the network and what is said about the input.

    Parameters
    ----------
    text : str
        The whole reference, for messages.
    rest : str
        What stands after the kind.

    Raises
    ------
    UserError
        If it is not of this form, or an option or value is unknown.
    """
    form = re.fullmatch(r"(?P<name>[\w.\-]+)(@(?P<size>\d{1,9}))?(\?(?P<query>.+))?", rest)
    if form is None:
        raise UserError(f"'{text}' names no model; a model is given as {FORMS}")
    network: dict[str, Any] = {"name": form["name"]}
    given: dict[str, Any] = {} if form["size"] is None else {"input_size": int(form["size"])}
    query = form["query"] or ""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise UserError(f"'{text}': options are written key=value and joined by &") from error
    for key, value in pairs:
        if key not in (*_NETWORK_OPTIONS, *_INPUT_OPTIONS):
            raise unknown("option", key, [*_NETWORK_OPTIONS, *_INPUT_OPTIONS], where=f"'{text}'")
        try:
            read: Any = json.loads(value)
        except ValueError:
            read = value
        values, field = (network, key) if key in _NETWORK_OPTIONS else (given, _INPUT_OPTIONS[key])
        if values.setdefault(field, read) != read:
            raise UserError(f"'{text}' gives the {key} twice: {values[field]} and {value}")
    try:
        settings = NetworkSettings.model_validate(network)
        checked = Preprocessing.model_validate({"input_size": 1, **given})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"'{text}': {place}: {first['msg']}") from error
    return settings, {key: checked.model_dump(mode="json")[key] for key in given}
