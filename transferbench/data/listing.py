"""What an archive's own lists say, and how an archive is told from any other folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Listing:
    """Classes, and images with labels by split.

    Attributes
    ----------
    files : mapping
        Paths below the root, in order; where `arrays` is given, names alone.
    labels : mapping
        A number an image, or for a multilabel set K numbers: 1 shown and 0 not, or 1 shown, -1 not
        and 0 difficult.
    arrays : mapping, optional
        Files that hold all the images of a split as arrays.
    """

    classes: tuple[str, ...]
    files: dict[str, list[str]]
    labels: dict[str, list[Any]]
    arrays: dict[str, list[str]] | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dict(self.__dict__)

    @classmethod
    def recall(cls, path: Path) -> Listing | None:
        """Read what `plain` gave; None if there is no such file or it is torn."""
        try:
            values = json.loads(path.read_text())
            found = cls(
                tuple(values["classes"]), values["files"], values["labels"], values["arrays"]
            )
            lengths = {s: len(names) for s, names in found.files.items()}
            whole = lengths == {s: len(labels) for s, labels in found.labels.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if whole else None


@dataclass(frozen=True)
class Reader:
    """How an archive lies on disk.

    Attributes
    ----------
    bases : tuple of str
        Folders that unpacking makes; the first that is there is read.
    marks : tuple of str
        What must be in the base folder, as patterns.
    listed : tuple of str
        Patterns of the files and folders in the base folder that say what is in the splits.
    read : callable
        Takes the root and the form, and returns what the lists say.
    """

    bases: tuple[str, ...]
    marks: tuple[str, ...]
    listed: tuple[str, ...]
    read: Callable[[Path, str], Listing]

    def base(self, place: Path) -> Path | None:
        """Return the base folder below a place, if it is there with its marks."""
        for name in self.bases:
            folder = place / name
            if folder.is_dir() and all(any(folder.glob(mark)) for mark in self.marks):
                return folder
        return None

    def is_at(self, place: Path) -> bool:
        """Return whether the archive was unpacked to a place."""
        return self.base(place) is not None

    def lists(self, place: Path) -> list[Path]:
        """Return the files and folders whose change may change the lists."""
        base = self.base(place)
        assert base is not None
        return [path for pattern in self.listed for path in sorted(base.glob(pattern))]
