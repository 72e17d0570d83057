"""A backbone whose network is loaded when something first needs it: cached features do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transferbench.backbones.backbone import Backbone
from transferbench.backbones.settings import Preprocessing
from transferbench.errors import UserError
from transferbench.storage import cache_folder, canonical_json, digest, write_atomic


class LateBackbone(Backbone):
    """As the backbone that `load` returns, which is called for `module` alone.

    Raises
    ------
    UserError
        When the network is asked for, if it is another one by then; and as `load`.
    """

    def __init__(
        self,
        name: str,
        said: Mapping[str, Any],
        notes: Mapping[str, Any],
        load: Callable[[], Backbone],
    ) -> None:
        given = Preprocessing.model_validate(said["preprocessing"])
        for key, value in {
            "name": name,
            "digest": said["digest"],
            "notes": notes,
            "_load": load,
            **given.model_dump(),
        }.items():
            object.__setattr__(self, key, value)

    def __getattr__(self, key: str) -> Any:
        if key != "module":
            raise AttributeError(key)
        loaded = self._load()
        if loaded.digest != self.digest:
            raise UserError(f"the model '{self.name}' changed while the evaluation ran; run again")
        object.__setattr__(self, "module", loaded.module)
        return loaded.module


def load_or_wait(
    name: str, identity: Mapping[str, Any], load: Callable[[], Backbone], *, device: str
) -> Backbone:
    """Return what `load` returns, or what stands for it until its network is needed.

    The first time a model of an identity is loaded at once, so that what is wrong with it is told
    before anything else; that it could be, and what was found, is noted in the cache.

    Parameters
    ----------
    name : str
        Its short name.
    identity : mapping
        As its reference tells it.
    load : callable
    device : str
        Where `load` places the network.
    """
    said = identity.get("preprocessing")
    # A plug-in's reference may not tell what would have to stand for its network.
    if not isinstance(said, dict):
        return load()
    kind = device.partition(":")[0]
    note = ["loaded", identity["digest"], kind, *(version(each) for each in ("torch", "timm"))]
    path = cache_folder("models") / f"{digest(note)}.json"
    if (notes := _read(path)) is not None:
        return LateBackbone(name, identity, notes, load)
    loaded = load()
    found = Preprocessing(**{key: getattr(loaded, key) for key in Preprocessing.model_fields})
    if loaded.cacheable and found.model_dump(mode="json") == said:
        write_atomic(path, canonical_json(dict(loaded.notes)))
    return loaded


def _read(path: Path) -> dict[str, Any] | None:
    try:
        notes = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return notes if isinstance(notes, dict) else None
