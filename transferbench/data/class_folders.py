"""Folders of images sorted into one folder a class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferbench.data.dataset import SPLITS, Card, StoredImage
from transferbench.errors import UserError
from transferbench.storage import digest

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# In any case of letters.
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
FIFTH = (
    "no split given: of each class the fifth (at least one image, rounded down) whose "
    "class/file names have the least SHA-1 is the test split"
)


@dataclass(frozen=True)
class ClassFolders:
    """Image files by split and class.

    Attributes
    ----------
    files : mapping
        Split to (class index, path) in the order of the classes, then of the paths.
    classes : tuple of str
        Folder names, sorted by code point.
    rule : str or None
        How the test split was made, where the folder has none.
    """

    root: Path
    files: dict[str, tuple[tuple[int, Path], ...]]
    classes: tuple[str, ...]
    rule: str | None

    @classmethod
    def find(cls, root: Path, order: tuple[str, ...] | None) -> ClassFolders | None:
        """Return the images below `root`, or None if there are none in class folders.

        Either `root` holds the class folders, or `train` and perhaps `val` and `test` folders
        that hold them.

        Parameters
        ----------
        order : tuple of str, optional
            The classes in the order of their labels, from a card.

        Raises
        ------
        UserError
            If a split or the card has other classes than `train`, a split has two folders or
            `train` none, or what look like classes are splits.
        """
        splits = _split_folders(root)
        if splits:
            found = {split: _images_by_class(p) for split, p in splits.items()}
            found = {split: classes for split, classes in found.items() if classes}
        else:
            found = {"train": _images_by_class(root)}
        if not found.get("train"):
            return None
        names = tuple(sorted(found["train"]))
        for split, classes in found.items():
            if extra := sorted(set(classes) - set(names)):
                raise UserError(f"{root}: the class '{extra[0]}' of {split} is not in train")
        if order is not None:
            if different := sorted(set(order) ^ set(names)):
                raise UserError(
                    f"{root}: the class '{different[0]}' is in only one of the card's class_names "
                    "and the class folders"
                )
            names = order
        rule = None
        if not splits:
            found, rule = _cut_a_fifth(root, found["train"]), FIFTH
        files = {
            split: tuple((names.index(c), p) for c in names for p in classes.get(c, []))
            for split, classes in found.items()
        }
        return cls(root, {s: files[s] for s in SPLITS if files.get(s)}, names, rule)

    def note(self) -> list[Any]:
        """What a stat shows; the same note means the same content."""
        stats = [(s, k, p, p.stat()) for s, rows in self.files.items() for k, p in rows]
        # Resolving every path would cost more than all the rest.
        names = [p.relative_to(self.root).as_posix() for _, _, p, _ in stats]
        rows = zip(names, stats, strict=True)
        return [
            str(self.root.resolve()),
            [[s, k, name, t.st_size, t.st_mtime_ns] for name, (s, k, _, t) in rows],
        ]

    def content(self) -> dict[str, Any]:
        """Return one digest of labels and image files by split."""
        return {
            split: digest([[k, content_digest(p)] for k, p in rows])
            for split, rows in self.files.items()
        }

    def infer(self, stated: dict[str, Any]) -> dict[str, Any]:
        """Return what the folders themselves say about classes and counts."""
        known: dict[str, Any] = {
            "task": "multiclass",
            "metric": "top1",
            "classes": len(self.classes),
            "class_names": self.classes,
            "counts": {split: len(rows) for split, rows in self.files.items()},
        }
        return known | ({"split": self.rule} if self.rule else {})

    def class_names(self, card: Card) -> tuple[str, ...]:
        """Return the names of the class folders in the order of the labels."""
        return self.classes

    def labels(self, split: str, card: Card) -> npt.NDArray[Any]:
        """Return the labels of a split, int64 (N,)."""
        return np.array([k for k, _ in self.files[split]], dtype=np.int64)

    def images(self, split: str, card: Card) -> FolderImages:
        """Return the images of a split."""
        return FolderImages(self.root, tuple(path for _, path in self.files[split]))


@dataclass(frozen=True)
class FolderImages:
    """Image files, read one by one."""

    root: Path
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[StoredImage]:
        from transferbench.data.images import EncodedImage

        for path in self.paths:
            where = Path(self.root.name, path.relative_to(self.root)).as_posix()
            yield EncodedImage(where, path)


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file; raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def has_class_images(root: Path) -> bool:
    """Return whether some sub-folder holds an image; stops at the first."""
    return any(True for folder in _folders(root) for _ in _walk(folder))


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits, or nothing if there are class folders alone."""
    found: dict[str, Path] = {}
    for folder in _folders(root):
        split = SPLIT_OF.get(folder.name.lower())
        if split is None:
            continue
        if split in found:
            raise UserError(
                f"{root}: '{found[split].name}' and '{folder.name}' are both the {split} split"
            )
        found[split] = folder
    if "train" in found:
        return found
    for folder in found.values():
        # A class may be called "valid"; its images lie in the folder itself.
        if has_class_images(folder):
            raise UserError(f"{root}: there is a split folder '{folder.name}', but none 'train'")
    return {}


def _images_by_class(root: Path) -> dict[str, list[Path]]:
    found = {p.name: sorted(_walk(p), key=lambda q: q.as_posix()) for p in _folders(root)}
    found = {name: paths for name, paths in found.items() if paths}
    # The first image tells in almost every set.
    if len(found) < 2 or any(p.parent == root / name for name in found for p in found[name]):
        return found
    below = [{p.relative_to(root / name).parts[0] for p in found[name]} for name in found]
    if shared := set.intersection(*below):
        first, second = list(found)[:2]
        raise UserError(
            f"{root}: '{first}' and '{second}' hold no images but folders of the same names, such "
            f"as '{min(shared)}'; name split folders train and test, or put the images of a class "
            "straight into its folder"
        )
    return found


def _cut_a_fifth(root: Path, classes: dict[str, list[Path]]) -> dict[str, dict[str, list[Path]]]:
    """Take the test images of every class by the SHA-1 of their names: stable under additions."""
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Path]] = {}
    for name, paths in classes.items():
        by_hash = sorted(
            paths, key=lambda p: hashlib.sha1(p.relative_to(root).as_posix().encode()).digest()
        )
        cut = max(1, len(paths) // 5) if len(paths) > 1 else 0
        chosen = set(by_hash[:cut])
        test[name] = [p for p in paths if p in chosen]
        train[name] = [p for p in paths if p not in chosen]
    return {"train": train, "test": test}
