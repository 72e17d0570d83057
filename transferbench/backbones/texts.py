"""Reference texts: `ARCH[@SIZE][?options]` to a network and its input, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
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

FORMS = "timm:ARCH[@TAG], file:PATH@ARCH, run:FOLDER, hub:ORG/NAME or random:ARCH"
_PLAIN = '{}[]:,"'  # what JSON needs and a query may hold as it is
_NETWORK_OPTIONS = ("stem", "padding", "pool", "args")
# An average over the places takes the norm before it, as the weights of a class token have it.
_POOLS: dict[str, dict[str, Any]] = {
    "token": {"global_pool": "token"},
    "avg": {"global_pool": "avg", "fc_norm": False},
}
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
    if settings.padding != "standard":
        options["padding"] = settings.padding
    if settings.args:
        options["args"] = settings.args
    options |= {"mean": list(mean), "std": list(std), "interpolation": interpolation}
    texts = {k: v if isinstance(v, str) else canonical_json(v) for k, v in options.items()}
    query = "&".join(f"{key}={quote(text, _PLAIN)}" for key, text in texts.items())
    return f"random:{settings.name}@{size}?{query}"


def parse_text(
    text: str, rest: str, further: Collection[str] = ()
) -> tuple[NetworkSettings, dict[str, Any], dict[str, str]]:
    """Read `ARCH[@SIZE][?options]`.

    Parameters
    ----------
    text : str
        The whole reference, for messages.
    rest : str
        What stands after the kind.
    further : collection of str
        Options of the kind's own.

    Returns
    -------
    network : NetworkSettings
    given : dict
        What is said about the input, by the names of `Preprocessing`.
    options : dict of str
        The further options that are given.

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
    options: dict[str, str] = {}
    for key, value in _pairs(text, form["query"] or ""):
        if key in further:
            options[key] = value
            continue
        if key not in (*_NETWORK_OPTIONS, *_INPUT_OPTIONS):
            valid = [*_NETWORK_OPTIONS, *_INPUT_OPTIONS, *further]
            raise unknown("option", key, valid, where=f"'{text}'")
        try:
            read: Any = json.loads(value)
        except ValueError:
            read = value
        values, field = (network, key) if key in _NETWORK_OPTIONS else (given, _INPUT_OPTIONS[key])
        if values.setdefault(field, read) != read:
            raise UserError(f"'{text}' gives the {key} twice: {values[field]} and {value}")
    pool = network.pop("pool", None)
    if pool is not None and pool not in _POOLS:
        raise unknown("pool", str(pool), _POOLS, where=f"'{text}'")
    if pool is not None and isinstance(network.setdefault("args", {}), dict):
        network["args"] = {**_POOLS[pool], **network["args"]}
    try:
        settings = NetworkSettings.model_validate(network)
        checked = Preprocessing.model_validate({"input_size": 1, **given})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"'{text}': {place}: {first['msg']}") from error
    return settings, {key: checked.model_dump(mode="json")[key] for key in given}, options


def _pairs(text: str, query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise UserError(f"'{text}': options are written key=value and joined by &") from error
