"""The official archives as their authors publish them, unpacked below the data root.

torchvision's classes read the lists where it has one; only what they lack is read here: the first
partition of SUN397, the labels of VOC2007, the drawn lists of Caltech-101, the tables of ISIC 2018
and ChestX. What the lists say is remembered, so that asking again imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferbench.data.archive_lists import READERS
from transferbench.data.class_folders import FolderImages, content_digest
from transferbench.data.dataset import Archive, Card, Images, StoredImage
from transferbench.data.listing import Listing, Reader
from transferbench.errors import UserError
from transferbench.storage import cache_folder, digest, file_digest, write_atomic

# Raised when the same archive would give other lists.
VERSION = 1


def find_archive(archive: Archive, name: str, data_root: Path | None) -> Path | None:
    """Return the folder that holds an unpacked archive: the data root, or `name` below it."""
    for place in places(archive, name, data_root):
        if READERS[archive.layout].is_at(place):
            return place
    return None


def archive_base(archive: Archive, name: str, data_root: Path) -> Path | None:
    """Return the folder that unpacking an archive made below a data root, if it is there."""
    place = find_archive(archive, name, data_root)
    return READERS[archive.layout].base(place) if place is not None else None


def places(archive: Archive, name: str, data_root: Path | None) -> list[Path]:
    """Return where the archive of the set `name` is looked for: `DIR/name`, and `DIR` itself."""
    if data_root is None:
        return []
    return [*(data_root / each for each in dict.fromkeys((name, archive.layout))), data_root]


def is_unpacked_archive(folder: Path) -> bool:
    """Return whether a folder is what unpacking an official archive beside it has made."""
    return any(
        Path(base).parts[0] == folder.name and reader.is_at(folder.parent)
        for reader in READERS.values()
        for base in reader.bases
    )


def packed(archive: Archive, name: str, data_root: Path | None) -> str:
    """Say what is wrong with archives that lie there but are not unpacked; empty if none do."""
    for place in places(archive, name, data_root):
        for file, stated in archive.files.items():
            path = place / file
            if path.is_file():
                size = path.stat().st_size
                if stated.bytes is not None and size != stated.bytes:
                    return (
                        f"{path} has {size:,} bytes, but the published archive {stated.bytes:,}: "
                        "the download is not whole"
                    )
                return f"{path} is there, but not unpacked"
    return ""


@dataclass(frozen=True)
class ArchiveLayout:
    """An unpacked archive.

    Attributes
    ----------
    place : Path
        The root that torchvision's class would be given.
    card : Card
        Of the catalogue.
    """

    place: Path
    card: Card

    @property
    def archive(self) -> Archive:
        """Where the card says that the images are."""
        assert self.card.archive is not None
        return self.card.archive

    @property
    def reader(self) -> Reader:
        """What reads its lists."""
        return READERS[self.archive.layout]

    @cached_property
    def listing(self) -> Listing:
        """What the lists say: read by torchvision the first time, then recalled."""
        try:
            stats = [(p, p.stat()) for p in self.reader.lists(self.place)]
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        note = [[str(p), t.st_size, t.st_mtime_ns] for p, t in stats]
        asked = [VERSION, self.archive.layout, self.archive.form, self.card.pooled]
        path = cache_folder("listings") / f"{digest([asked, str(self.place.resolve()), note])}.json"
        if (known := Listing.recall(path)) is not None:
            return known
        found = self.reader.read(self.place, self.archive.form)
        if self.card.pooled:
            found = cut_pool(found)
        write_atomic(path, json.dumps(found.plain()))
        return found

    @property
    def files(self) -> Mapping[str, Sequence[str]]:
        """Paths of the images by split, below the place."""
        return self.listing.files

    def content(self) -> dict[str, Any]:
        """Return one digest of labels and images by split, remembered as long as no file changes.

        Raises
        ------
        UserError
            If files that the lists name are missing.
        """
        listing = self.listing
        if listing.arrays is not None:
            return {
                split: [file_digest(self.place / name) for name in names]
                for split, names in listing.arrays.items()
            }
        note = [self.archive.layout, self.archive.form, self._stats()]
        path = cache_folder("contents") / f"{digest(note)}.json"
        try:
            known = json.loads(path.read_text())
            if isinstance(known, dict) and known.keys() == listing.files.keys():
                return known
        except (OSError, ValueError):
            pass
        once: dict[str, str] = {}
        for names in listing.files.values():
            for name in names:
                if name not in once:
                    once[name] = content_digest(self.place / name)
        found = {
            split: digest([[k, once[f]] for k, f in zip(listing.labels[split], names, strict=True)])
            for split, names in listing.files.items()
        }
        write_atomic(path, json.dumps(found))
        return found

    def _stats(self) -> list[list[Any]]:
        listing, stats, missing = self.listing, [], []
        for split, names in listing.files.items():
            for name, label in zip(names, listing.labels[split], strict=True):
                try:
                    stat = (self.place / name).stat()
                except OSError:
                    missing.append(name)
                    continue
                stats.append([split, label, name, stat.st_size, stat.st_mtime_ns])
        if missing:
            total = sum(map(len, listing.files.values()))
            raise UserError(
                f"{self.place}: {len(missing)} of the {total} images that the lists name are "
                f"missing, {missing[0]} for one; unpack the archive again, whole"
            )
        return [[str(self.place.resolve())], *stats]

    def labels(self, split: str, card: Card) -> npt.NDArray[Any]:
        """Return the labels of a split, int64 (N,), or (N, K) of a multilabel set.

        Raises
        ------
        UserError
            If one is outside 0..classes-1.
        """
        if card.task == "multilabel":
            many: npt.NDArray[np.int8] = np.array(self.listing.labels[split], dtype=np.int8)
            return many if many.min(initial=0) < 0 else many.astype(np.uint8)
        labels = np.array(self.listing.labels[split], dtype=np.int64)
        if len(outside := np.flatnonzero((labels < 0) | (labels >= card.classes))):
            first = int(outside[0])
            raise UserError(
                f"{self.place}: {split}, {self.files[split][first]}: label {labels[first]} is "
                f"outside 0..{card.classes - 1}"
            )
        return labels

    def images(self, split: str, card: Card) -> Images:
        """Return the images of a split."""
        if self.listing.arrays is not None:
            return BatchImages(self.archive.layout, self.place, split, len(self.files[split]))
        return FolderImages(self.place, tuple(self.place / name for name in self.files[split]))

    def class_names(self, card: Card) -> tuple[str, ...]:
        """Return the names of the classes in the order of the labels."""
        return self.listing.classes


@dataclass(frozen=True)
class BatchImages:
    """Images of CIFAR's batches, read when they are first walked over."""

    layout: str
    place: Path
    split: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[StoredImage]:
        from transferbench.data.archive_lists import cifar
        from transferbench.data.images import ArrayImage

        pixels = cifar(self.layout, self.place, self.split).data
        for position, image in enumerate(pixels):
            yield ArrayImage(f"{self.layout}/{self.split}, image {position}", image)


def cut_pool(listing: Listing) -> Listing:
    """Take the fifth of a pool whose file names have the least SHA-1 as its test split."""
    names, labels = listing.files["train"], listing.labels["train"]
    test = set(fifth_by_name([Path(name).name for name in names]))
    rows = {
        "train": [i for i in range(len(names)) if i not in test],
        "test": [i for i in range(len(names)) if i in test],
    }
    return Listing(
        listing.classes,
        {split: [names[i] for i in kept] for split, kept in rows.items()},
        {split: [labels[i] for i in kept] for split, kept in rows.items()},
    )


def fifth_by_name(names: Sequence[str]) -> list[int]:
    """Return the positions of the fifth, rounded down, of names with the least SHA-1."""
    hashes = [hashlib.sha1(name.encode()).digest() for name in names]
    return sorted(range(len(names)), key=hashes.__getitem__)[: len(names) // 5]
