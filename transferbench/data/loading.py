"""From what a layout holds to a data set: labels and images checked against the card."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from transferbench.data.dataset import (
    Card,
    Dataset,
    Images,
    Split,
    StoredImage,
    Wanted,
    data_identity,
)
from transferbench.errors import UserError
from transferbench.progress import Progress
from transferbench.storage import digest


class Layout(Protocol):
    """A way in which labelled images lie on disk."""

    @property
    def files(self) -> Mapping[str, Sequence[Any]]:
        """What each split is made of; its keys are the splits."""
        ...

    def labels(self, split: str, card: Card) -> npt.NDArray[Any]:
        """Return labels, int64 (N,) or uint8 (N, K); raises UserError on one out of range."""
        ...

    def images(self, split: str, card: Card) -> Images:
        """Return the N images of a split."""
        ...

    def class_names(self, card: Card) -> tuple[str, ...] | None:
        """Return the names of the classes in the order of the labels, where they are stored."""
        ...


def open_dataset(
    name: str,
    where: str,
    layout: Layout,
    content: Mapping[str, Any],
    card: Card,
    *,
    skip_corrupt: int,
    progress: Progress,
    wanted: Wanted | None = None,
) -> Dataset:
    """Read labels, check them and every image, and return the data set.

    Parameters
    ----------
    where : str
        Folder or copy, for messages.
    content : mapping
        What identifies the stored content of each split.
    wanted : Wanted, optional
        At which pixels are cached by the same decoding.

    Raises
    ------
    UserError
        If a label is out of range, a count differs from the card's, one class alone occurs, or
        more than `skip_corrupt` images are corrupt.
    """
    classes = _class_names(layout, card, where)
    labels = {split: layout.labels(split, card) for split in layout.files}
    for split in ("train", *labels):
        if split not in labels or not len(labels[split]):
            raise UserError(f"{where}: the split '{split}' has no images")
    stated = (card.counts, card.images_per_class or {}, card.label_histogram or {})
    for split in (split for part in stated for split in part):
        if split not in labels:
            said = card.counts.get(split, "how many a class has")
            raise UserError(f"{where}: {split} has 0 images, but the card says {said}")
    if card.validation == "given" and "val" not in labels:
        raise UserError(f"{where}: validation = 'given', but there is no val split")
    _check_not_swapped(where, labels, card)
    for split, found in labels.items():
        _check_counts(f"{where}: {split}", split, found, card)
    if labels["train"].ndim == 1 and len(np.unique(labels["train"])) < 2:
        raise UserError(f"{where}: all training images have one label; two are needed")
    splits, repeats = _surveyed(name, layout, content, labels, card, skip_corrupt, progress, wanted)
    if repeats:
        warnings.warn(
            f"{name}: {repeats} of {len(splits['test'])} test images are also among those to "
            "train on, pixel for pixel",
            RepeatWarning,
            stacklevel=3,
        )
    return Dataset(name, card, data_identity(content, card), splits, classes, repeats)


def _class_names(layout: Layout, card: Card, where: str) -> tuple[str, ...]:
    names = card.class_names or layout.class_names(card)
    if names is None:
        return tuple(str(k) for k in range(card.classes))
    if len(names) != card.classes:
        raise UserError(
            f"{where}: the card says {card.classes} classes, the files name {len(names)}"
        )
    return names


def _surveyed(
    name: str,
    layout: Layout,
    content: Mapping[str, Any],
    labels: dict[str, npt.NDArray[Any]],
    card: Card,
    skip_corrupt: int,
    progress: Progress,
    wanted: Wanted | None,
) -> tuple[dict[str, Split], int]:
    from transferbench.data.survey import Hashes, survey

    splits: dict[str, Split] = {}
    hashes: dict[str, Hashes] = {}
    corrupt: list[tuple[str, str]] = []
    for split, found in labels.items():
        images = layout.images(split, card)
        fingerprint = digest([content[split], card.image_column, card.label_column])
        seen = survey(images, fingerprint, f"{name}/{split}", progress, wanted)
        corrupt += [(where, reason) for _, where, reason in seen.corrupt]
        opened = Split(split, found, images, fingerprint, seen.native_size)
        left_out = [i for i, _, _ in seen.corrupt]
        splits[split] = _without(opened, left_out)
        hashes[split] = np.delete(seen.hashes, left_out)
    if len(corrupt) > skip_corrupt:
        where, reason = corrupt[0]
        raise UserError(
            f"{where} is corrupt ({reason}); corrupt images: {len(corrupt)}, tolerated: "
            f"{skip_corrupt} (--skip-corrupt {len(corrupt)} leaves them out)"
        )
    fitted = np.concatenate([found for split, found in hashes.items() if split != "test"])
    return splits, int(np.isin(hashes["test"], fitted).sum()) if "test" in hashes else 0


class RepeatWarning(UserWarning):
    """Test images occur among the training images too."""


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


def _check_not_swapped(where: str, labels: Mapping[str, npt.NDArray[Any]], card: Card) -> None:
    found = {split: len(values) for split, values in labels.items()}
    for one, other in (("train", "test"), ("val", "test"), ("train", "val")):
        if one in card.counts and other in card.counts:
            expected = (card.counts[one], card.counts[other])
            have = (found.get(one), found.get(other))
            if have == expected[::-1] and have != expected:
                raise UserError(
                    f"{where}: {one} has {have[0]} images and {other} {have[1]}, but the card "
                    f"says {expected[0]} and {expected[1]}: the two splits are swapped"
                )


def _check_counts(where: str, split: str, labels: npt.NDArray[Any], card: Card) -> None:
    stated = card.counts.get(split)
    if stated is not None and stated != len(labels):
        raise UserError(f"{where} has {len(labels)} images, but the card says {stated}")
    if labels.ndim == 2:
        per_class = (labels == 1).sum(axis=0, dtype=np.int64)
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
