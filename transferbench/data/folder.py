"""A folder on this machine as a data set: parquet files or class folders, card or none."""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transferbench.data.class_folders import ClassFolders, has_class_images
from transferbench.data.dataset import Card, Dataset, Wanted, data_identity, make_card
from transferbench.data.hub import HubLayout
from transferbench.data.loading import open_dataset
from transferbench.data.tables import SAVED, TableFolder
from transferbench.errors import NotAtHand, UserError
from transferbench.progress import SILENT, Progress
from transferbench.storage import cache_folder, digest, write_atomic

CARD_FILE = "dataset.toml"
COLUMNS = ("image_column", "label_column")


class CardWarning(UserWarning):
    """A card has keys that nothing reads.

    Attributes
    ----------
    name : str
        Of the set.
    keys : list of str
    """

    def __init__(self, name: str, keys: list[str]) -> None:
        super().__init__(f"{name}/{CARD_FILE}: kept but not read: {', '.join(keys)}")
        self.name = name
        self.keys = keys


def holds_data(folder: Path) -> bool:
    """Return whether a folder looks like a data set: a card, parquet files or class folders."""
    if (folder / CARD_FILE).is_file() or (folder / SAVED).is_file():
        return True
    if next(folder.glob("*.parquet"), None) or next(folder.glob("data/*.parquet"), None):
        return True
    return has_class_images(folder)


class FolderSource:
    """A data folder.

    Parameters
    ----------
    folder : Path
        Holds parquet files or class folders, and perhaps `dataset.toml`, whose keys take
        precedence over what the files say. The folder's name is the set's name.

    Raises
    ------
    UserError
        If the folder is missing, empty or holds no images.
    """

    kind: Literal["folder"] = "folder"

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"the data folder {folder} does not exist")
        self.folder = folder
        self.name = folder.resolve().name
        if not holds_data(folder):
            state = "holds no images" if any(folder.iterdir()) else "is empty"
            raise UserError(
                f"the data folder {folder} {state}; it needs train.parquet and test.parquet, "
                "or images in one folder a class"
            )

    @cached_property
    def card(self) -> Card:
        """The folder's `dataset.toml`, completed by what the files say."""
        stated = self._stated
        needed = {"task", "metric", "classes", "counts", "label_column"}
        inferred: dict[str, Any] = {}
        # A card with a copy on the Hub can be read before that was fetched.
        remote = "hub" in stated and needed - {"label_column"} <= stated.keys()
        if not remote and not (needed <= stated.keys() and isinstance(self._layout, TableFolder)):
            # Only what the inference reads: other values need not be JSON.
            asked = {k: stated[k] for k in ("classes", *COLUMNS) if k in stated}
            note = [self._note, repr(sorted(asked.items()))]
            inferred = _remembered("cards", note, lambda: self._layout.infer(stated))
        several = stated.get("task") == "multilabel"
        if several and not remote and isinstance(self._layout, ClassFolders):
            raise UserError(
                f"{self.folder / CARD_FILE}: task = 'multilabel', but an image in a class folder "
                "has one label; several labels need parquet files"
            )
        if inferred.get("classes") == 1:
            raise UserError(f"{self.folder} has one class; a data set needs two classes or more")
        values = {"name": self.name, "title": self.name, **inferred, **stated}
        return make_card(values, str(self.folder / CARD_FILE if stated else self.folder))

    def identity(self) -> str:
        """Return the SHA-256 of the stored content and of what the card means; a stat if known."""
        return data_identity(self._content, self.card)

    def load(
        self, *, skip_corrupt: int = 0, progress: Progress = SILENT, wanted: Wanted | None = None
    ) -> Dataset:
        """Read labels, check them and every image, and return the data set.

        Raises
        ------
        UserError
            If a label is out of range, a count differs from the card's, one class alone occurs,
            or more than `skip_corrupt` images are corrupt.
        """
        if self.card.unknown_keys:
            warnings.warn(CardWarning(self.name, self.card.unknown_keys), stacklevel=2)
        return open_dataset(
            self.name,
            str(self.folder),
            self._layout,
            self._content,
            self.card,
            skip_corrupt=skip_corrupt,
            progress=progress,
            wanted=wanted,
        )

    @property
    def bytes(self) -> int:
        """Size of its tables; 0 where the images lie in class folders or are not at hand."""
        try:
            layout = self._layout
            if isinstance(layout, TableFolder):
                return sum(p.stat().st_size for paths in layout.files.values() for p in paths)
        except (UserError, OSError):
            pass
        return 0

    @cached_property
    def _stated(self) -> dict[str, Any]:
        path = self.folder / CARD_FILE
        if not path.is_file():
            return {}
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise UserError(f"{path} is not readable TOML: {error}") from error

    @cached_property
    def _layout(self) -> TableFolder | ClassFolders | HubLayout:
        # The card is checked before its lists of files and classes are followed.
        stated = self._stated
        draft = make_card(
            {"name": self.name, "classes": 2, "metric": "top1"}
            | {k: stated[k] for k in ("files", "hub", "pooled", *COLUMNS) if k in stated},
            str(self.folder / CARD_FILE),
        )
        order = stated.get("class_names")
        named = tuple(map(str, order)) if isinstance(order, list) else None
        found: TableFolder | ClassFolders | HubLayout | None
        found = TableFolder.find(self.folder, draft.files)
        found = found or ClassFolders.find(self.folder, named)
        if found is None and draft.hub is not None:
            found = HubLayout.find(draft.hub, pooled=draft.pooled)
            if found is None:
                raise NotAtHand(
                    f"the images of '{self.name}' are not at hand: {self.folder} holds none, and "
                    f"{draft.hub.path} at {draft.hub.revision[:12]} was not fetched from the Hub",
                    f"transferbench fetch folder:{self.folder}",
                )
        if found is None:
            raise UserError(
                f"the data folder {self.folder} holds no images; it needs train.parquet and "
                "test.parquet, or images in one folder a class"
            )
        return found

    @cached_property
    def _content(self) -> dict[str, Any]:
        return _remembered("contents", self._note, self._layout.content)

    @cached_property
    def _note(self) -> list[Any]:
        return self._layout.note()


def _remembered(kind: str, note: object, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Recall a computed JSON mapping, or compute and keep it; a torn note is computed anew."""
    path = cache_folder(kind) / f"{digest(note)}.json"
    try:
        known = json.loads(path.read_text())
        if isinstance(known, dict):
            return known
    except (OSError, ValueError):
        pass
    found = compute()
    write_atomic(path, json.dumps(found))
    return found
