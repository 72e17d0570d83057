"""Copies on the Hugging Face Hub: fetched once at a pinned revision, then read from its cache.

Fetching is a step of its own (`transferbench fetch`): nothing is downloaded because a name was
mentioned. What was fetched is noted in our cache, so that finding it again imports nothing and
asks no server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferbench.data.archives import fifth_by_name
from transferbench.data.dataset import Card, Hub, Images
from transferbench.data.loading import KeptImages
from transferbench.data.tables import TableFolder
from transferbench.errors import UserError
from transferbench.storage import cache_folder, digest, write_atomic


def fetched(hub: Hub) -> dict[str, tuple[Path, ...]] | None:
    """Return the files of a copy by its own splits; None unless all are there as they were."""
    try:
        known = json.loads(_note(hub).read_text())
        for files in known.values():
            for path, size in files:
                if Path(path).stat().st_size != size:
                    return None
        return {split: tuple(Path(path) for path, _ in files) for split, files in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def fetch(hub: Hub) -> bool:
    """Download a copy through the `datasets` library; returns whether there was anything to do.

    What was half done before is continued; what the cache holds whole is not downloaded again.

    Raises
    ------
    UserError
        If there is no such copy, the Hub cannot be reached, a download is damaged or the disk is
        full. Nothing counts as fetched then.
    """
    if fetched(hub) is not None:
        return False
    import datasets

    # Files that were noted and have changed since are made anew from the downloads.
    mode = "reuse_cache_if_exists" if _note(hub).is_file() else "reuse_dataset_if_exists"
    title = f"{hub.path} at revision {hub.revision[:12]}"
    try:
        found = datasets.load_dataset(
            hub.path, name=hub.config, revision=hub.revision, download_mode=mode
        )
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise UserError(
            f"the Hub has no {title}, or it is gated and needs `hf auth login` ({_line(error)})"
        ) from error
    except Exception as error:
        # The library raises whatever its dozen readers and clients do.
        cause = error.__cause__ or error
        raise UserError(
            f"{title} could not be fetched ({type(cause).__name__}: {_line(cause)}); the same "
            "command tries again"
        ) from error
    wanted = [split for splits in hub.splits.values() for split in splits]
    if missing := [split for split in wanted if split not in found]:
        raise UserError(f"{title} has the splits {', '.join(found)}, but no '{missing[0]}'")
    files = {
        split: [
            [each["filename"], Path(each["filename"]).stat().st_size]
            for each in found[split].cache_files
        ]
        for split in dict.fromkeys(wanted)
    }
    write_atomic(_note(hub), json.dumps(files))
    return True


def _note(hub: Hub) -> Path:
    name = digest([hub.path, hub.revision, hub.config])
    return cache_folder("fetched") / f"{name}.json"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


@dataclass(frozen=True)
class HubLayout:
    """A fetched copy.

    Attributes
    ----------
    tables : TableFolder
        Its files by our splits.
    pooled : bool
        Whether a fifth of `train`, by the SHA-1 of the rows' numbers, is `test`.
    """

    hub: Hub
    tables: TableFolder
    pooled: bool = False

    @classmethod
    def find(cls, hub: Hub, *, pooled: bool = False) -> HubLayout | None:
        """Return a copy that was fetched, or None."""
        there = fetched(hub)
        if there is None or not all(
            theirs in there for ours in hub.splits.values() for theirs in ours
        ):
            return None
        files = {
            ours: tuple(path for split in theirs for path in there[split])
            for ours, theirs in hub.splits.items()
        }
        return cls(hub, TableFolder(Path(hub.path), files, linked=True), pooled)

    @property
    def where(self) -> str:
        """Repository and revision, for messages."""
        return f"{self.hub.path}@{self.hub.revision[:12]}"

    @property
    def files(self) -> Mapping[str, tuple[Path, ...]]:
        """Arrow files by split."""
        files = self.tables.files
        return {"train": files["train"], "test": files["train"]} if self.pooled else files

    def note(self) -> list[Any]:
        """What identifies the content; the commit does."""
        return [self.content()]

    def content(self) -> dict[str, Any]:
        """Return what identifies the content by split: a commit's files never change."""
        hub = self.hub.model_dump(mode="json", exclude={"splits"})
        source = self.hub.splits
        return {
            split: ["hub", hub, source["train" if self.pooled else split], self.pooled, split]
            for split in self.files
        }

    def infer(self, stated: dict[str, Any]) -> dict[str, Any]:
        """Return what the files themselves say about task, classes and counts."""
        asked = {"image_column": self.hub.image_column, "label_column": self.hub.label_column}
        return self.tables.infer({**stated, **asked})

    def class_names(self, card: Card) -> tuple[str, ...] | None:
        """Return the names of the copy's label column, if it has any."""
        return self.tables.class_names(self._columns(card))

    def labels(self, split: str, card: Card) -> npt.NDArray[Any]:
        """Return the labels of a split, int64 (N,) or uint8 (N, K)."""
        source = "train" if self.pooled else split
        labels = self.tables.labels(source, self._columns(card))
        return labels[self._rows(split, len(labels))] if self.pooled else labels

    def images(self, split: str, card: Card) -> Images:
        """Return the images of a split."""
        source = "train" if self.pooled else split
        images = self.tables.images(source, self._columns(card))
        if not self.pooled:
            return images
        other = "train" if split == "test" else "test"
        return KeptImages(images, frozenset(self._rows(other, len(images)).tolist()))

    def _columns(self, card: Card) -> Card:
        columns = {
            "image_column": self.hub.image_column,
            "label_column": self.hub.label_column,
        }
        return card.model_copy(update=columns)

    def _rows(self, split: str, count: int) -> npt.NDArray[np.int64]:
        test = np.zeros(count, bool)
        test[fifth_by_name([str(i) for i in range(count)])] = True
        return np.flatnonzero(test if split == "test" else ~test)
