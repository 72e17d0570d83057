"""A folder on this machine as a data set: parquet files or class folders, card or none."""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from transferbench.data.class_folders import ClassFolders, has_class_images
from transferbench.data.dataset import (
    Card,
    Dataset,
    Images,
    Split,
    StoredImage,
    data_identity,
    make_card,
)
from transferbench.data.parquet import ParquetFolder
from transferbench.errors import UserError
from transferbench.progress import SILENT, Progress
from transferbench.storage import cache_folder, digest, write_atomic

CARD_FILE = "dataset.toml"
COLUMNS = ("image_column", "label_column")


class CardWarning(UserWarning):
    """A card has keys that nothing reads."""


def holds_data(folder: Path) -> bool:
    """Return whether a folder looks like a data set: a card, parquet files or class folders."""
    if (folder / CARD_FILE).is_file():
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
        if not (needed <= stated.keys() and isinstance(self._layout, ParquetFolder)):
            # Only what the inference reads: other values need not be JSON.
            asked = {k: stated[k] for k in ("classes", *COLUMNS) if k in stated}
            note = [self._note, repr(sorted(asked.items()))]
            inferred = _remembered("cards", note, lambda: self._layout.infer(stated))
        if isinstance(self._layout, ClassFolders) and stated.get("task") == "multilabel":
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

    def load(self, *, skip_corrupt: int = 0, progress: Progress = SILENT) -> Dataset:
        """Read labels, check them and every image, and return the data set.

        Raises
        ------
        UserError
            If a label is out of range, a count differs from the card's, one class alone occurs,
            or more than `skip_corrupt` images are corrupt.
        """
        card = self.card
        if card.unknown_keys:
            keys = ", ".join(card.unknown_keys)
            warnings.warn(
                f"{self.name}/{CARD_FILE}: kept but not read: {keys}", CardWarning, stacklevel=2
            )
        classes = self._class_names(card)
        labels = {name: self._layout.labels(name, card) for name in self._layout.files}
        for name in ("train", *labels):
            if name not in labels or not len(labels[name]):
                raise UserError(f"{self.folder}: the split '{name}' has no images")
        stated = (card.counts, card.images_per_class or {}, card.label_histogram or {})
        for name in (name for part in stated for name in part):
            if name not in labels:
                said = card.counts.get(name, "how many a class has")
                raise UserError(f"{self.folder}: {name} has 0 images, but the card says {said}")
        if card.validation == "given" and "val" not in labels:
            raise UserError(f"{self.folder}: validation = 'given', but there is no val split")
        for name, found in labels.items():
            _check_counts(f"{self.folder}: {name}", name, found, card)
        if labels["train"].ndim == 1 and len(np.unique(labels["train"])) < 2:
            raise UserError(f"{self.folder}: all training images have one label; two are needed")
        splits = self._surveyed(labels, card, skip_corrupt, progress)
        return Dataset(self.name, card, self.identity(), splits, classes)

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
    def _layout(self) -> ParquetFolder | ClassFolders:
        # The card is checked before its lists of files and classes are followed.
        stated = self._stated
        draft = make_card(
            {"name": self.name, "classes": 2, "metric": "top1"}
            | {k: stated[k] for k in ("files", *COLUMNS) if k in stated},
            str(self.folder / CARD_FILE),
        )
        order = stated.get("class_names")
        named = tuple(map(str, order)) if isinstance(order, list) else None
        found: ParquetFolder | ClassFolders | None = ParquetFolder.find(self.folder, draft.files)
        found = found or ClassFolders.find(self.folder, named)
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

    def _class_names(self, card: Card) -> tuple[str, ...]:
        names = card.class_names or self._layout.class_names(card)
        if names is None:
            return tuple(str(k) for k in range(card.classes))
        if len(names) != card.classes:
            raise UserError(
                f"{self.folder}: the card says {card.classes} classes, the files name {len(names)}"
            )
        return names

    def _surveyed(
        self,
        labels: dict[str, npt.NDArray[Any]],
        card: Card,
        skip_corrupt: int,
        progress: Progress,
    ) -> dict[str, Split]:
        from transferbench.data.images import survey

        splits: dict[str, Split] = {}
        corrupt: list[tuple[str, str]] = []
        for name, found in labels.items():
            images: Images = self._layout.images(name, card)
            fingerprint = digest([self._content[name], card.image_column, card.label_column])
            seen = survey(images, fingerprint, f"{self.name}/{name}", progress)
            corrupt += [(where, reason) for _, where, reason in seen.corrupt]
            split = Split(name, found, images, fingerprint, seen.native_size)
            splits[name] = _without(split, [i for i, _, _ in seen.corrupt])
        if len(corrupt) > skip_corrupt:
            where, reason = corrupt[0]
            raise UserError(
                f"{where} is corrupt ({reason}); corrupt images: {len(corrupt)}, tolerated: "
                f"{skip_corrupt} (--skip-corrupt {len(corrupt)} leaves them out)"
            )
        return splits


@dataclass(frozen=True)
class KeptImages:
    """Images without those at some positions."""

    images: Images
    left_out: frozenset[int]

    def __len__(self) -> int:
        return len(self.images) - len(self.left_out)

    def __iter__(self) -> Iterator[StoredImage]:
        return (image for i, image in enumerate(self.images) if i not in self.left_out)


def _without(split: Split, positions: list[int]) -> Split:
    if not positions:
        return split
    return replace(
        split,
        labels=np.delete(split.labels, positions, axis=0),
        images=KeptImages(split.images, frozenset(positions)),
        fingerprint=digest([split.fingerprint, positions]),
        skipped=len(positions),
    )


def _check_counts(where: str, split: str, labels: npt.NDArray[Any], card: Card) -> None:
    stated = card.counts.get(split)
    if stated is not None and stated != len(labels):
        raise UserError(f"{where} has {len(labels)} images, but the card says {stated}")
    if labels.ndim == 2:
        per_class = labels.sum(axis=0, dtype=np.int64)
    else:
        per_class = np.bincount(labels, minlength=card.classes)
    if card.images_per_class and (limits := card.images_per_class.get(split)):
        for word, found, said in (
            ("fewest", int(per_class.min()), limits.min),
            ("most", int(per_class.max()), limits.max),
        ):
            if found != said:
                raise UserError(
                    f"{where}: the {word} images of a class are {found}, but the card says {said}"
                )
    if card.label_histogram and (said_all := card.label_histogram.get(split)):
        for label, (found, said) in enumerate(zip(per_class.tolist(), said_all, strict=True)):
            if found != said:
                raise UserError(
                    f"{where}: label {label} has {found} images, but the card says {said}"
                )


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
