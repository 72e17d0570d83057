"""Names to objects: built-ins and plug-ins alike are entry points; nothing is imported until asked.

A package adds to a group by declaring an entry point, e.g. in its pyproject.toml::

    [project.entry-points."transferbench.methods"]
    my-method = "my_package.method:MyMethod"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from transferbench.errors import UserError, unknown

Group = Literal["methods", "datasets", "protocols", "backbones"]


@cache
def _entries(group: Group) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"transferbench.{group}"):
        known = found.get(entry.name)
        # An editable install can list one entry twice; a second target is a clash.
        if known is not None and known.value != entry.value:
            raise UserError(
                f"two packages register the {group[:-1]} '{entry.name}': "
                f"{known.value} and {entry.value}; uninstall one of them"
            )
        found[entry.name] = entry
    return found


def names(group: Group) -> list[str]:
    """Return the registered names of a group, sorted, importing none of the objects."""
    return sorted(_entries(group))


def load(group: Group, name: str) -> Any:
    """Import and return the object registered as `name`.

    Raises
    ------
    UserError
        If there is no such name (with the nearest ones), or a plug-in cannot be imported.
    """
    entries = _entries(group)
    if name not in entries:
        raise unknown(group[:-1].replace("dataset", "data set"), name, entries)
    entry = entries[name]
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        if entry.module.split(".")[0] == "transferbench":
            raise
        raise UserError(
            f"the plug-in '{name}' ({entry.value}) cannot be imported: {error}"
        ) from error
