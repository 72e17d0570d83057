"""What a data set is: a card that describes it, and named splits of images with labels."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from transferbench.errors import UserError, nearest
from transferbench.progress import SILENT, Progress
from transferbench.storage import digest

if TYPE_CHECKING:
    from PIL.Image import Image

Task = Literal["multiclass", "multilabel"]
Metric = Literal["top1", "mean_per_class", "map11"]
Interpolation = Literal["bilinear", "bicubic"]
FILTERS: tuple[Interpolation, ...] = get_args(Interpolation)
SPLITS = ("train", "val", "test")
# Raised when the same stored image would give other pixels (see `images`).
PIXELS_VERSION = 1


@dataclass(frozen=True)
class Wanted:
    """How a network will ask for pixels: side in pixels, and the filter that makes it."""

    size: int
    interpolation: Interpolation = "bicubic"


class Range(BaseModel):
    """The least and the most images that a class has in a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int
    max: int


class Hub(BaseModel):
    """A copy on the Hugging Face Hub.

    Attributes
    ----------
    path : str
        The repository, "owner/name".
    revision : str
        Its commit, 40 hexadecimal digits: a branch moves.
    config : str, optional
        The configuration, where it has several.
    splits : mapping
        Our splits to the copy's; several are read one after the other.
    image_column, label_column : str
        Columns of the copy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    config: str | None = None
    splits: dict[str, tuple[str, ...]]
    image_column: str = "image"
    label_column: str = "label"

    @model_validator(mode="after")
    def _our_splits(self) -> Hub:
        if "train" not in self.splits or set(self.splits) - set(SPLITS):
            raise ValueError("splits must name train, and besides it val and test alone")
        return self


class ArchiveFile(BaseModel):
    """An archive as its authors publish it: size in bytes, and a checksum where one is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int | None = None
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class Archive(BaseModel):
    """The official archives, unpacked below the data root.

    Attributes
    ----------
    layout : str
        Which reader of `archives` knows it.
    form : str
        A variant of the labels or splits that the reader offers; empty for its first.
    get : str
        How to get and unpack it; DIR stands for the data root.
    files : mapping
        The archives by file name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: str
    form: str = ""
    get: str
    files: dict[str, ArchiveFile] = Field(default_factory=dict)


class Card(BaseModel):
    """What is said about a data set; the schema of `dataset.toml` and of `cards/*.toml`.

    Attributes
    ----------
    task : {"multiclass", "multilabel"}
        One label an image, or any number of them.
    metric : {"top1", "mean_per_class", "map11"}
        "map11" (11-point mean average precision) goes with "multilabel", the others with
        "multiclass".
    classes : int
        Labels are 0..classes-1.
    label_column, image_column : str
        Columns of parquet files.
    class_names : tuple of str, optional
        For class folders also their order.
    source, revision, split : str, optional
        Where the images come from, the pinned version, and how the splits were made.
    counts : mapping
        Images per split; other numbers found are an error.
    images_per_class, label_histogram : mapping, optional
        Expected extremes, or expected counts per class, by split; checked in the same way.
    files : mapping, optional
        Parquet files of each split, relative to the folder.
    validation : {"given", "random-fifth"}
        Where validation images come from; by default "given" where there is a `val` split.
    pooled : bool
        The source has no test split: the fifth of the images whose names have the least SHA-1 is
        one.
    size : str, optional
        What a download weighs.
    hub, archive : optional
        Where a catalogue set is found: a copy on the Hub, and the official archives.

    Keys beyond the schema are kept in `model_extra`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1)
    title: str = ""
    task: Task = "multiclass"
    metric: Metric
    classes: int = Field(ge=2)
    label_column: str = "label"
    image_column: str = "image"
    class_names: tuple[str, ...] | None = None
    licence: str = "not stated"
    citation: str = ""
    source: str = ""
    revision: str | None = None
    split: str | None = None
    image_size: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    images_per_class: dict[str, Range] | None = None
    label_histogram: dict[str, tuple[int, ...]] | None = None
    files: dict[str, list[str]] | None = None
    validation: Literal["given", "random-fifth"] = "random-fifth"
    pooled: bool = False
    size: str | None = None
    hub: Hub | None = None
    archive: Archive | None = None

    @model_validator(mode="before")
    @classmethod
    def _validation_by_the_splits(cls, values: Any) -> Any:
        if isinstance(values, dict) and "validation" not in values:
            given = (values.get("counts"), values.get("files"))
            splits = {split for part in given if isinstance(part, Mapping) for split in part}
            values = {**values, "validation": "given" if "val" in splits else "random-fifth"}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if (self.task == "multilabel") != (self.metric == "map11"):
            raise ValueError(f"the metric '{self.metric}' does not go with a {self.task} task")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"{self.classes} classes but {len(self.class_names)} class_names")
        histograms = self.label_histogram or {}
        limits = self.images_per_class or {}
        for name in (*self.counts, *(self.files or ()), *limits, *histograms):
            if name not in SPLITS:
                raise ValueError(f"'{name}' is not a split; the splits are train, val and test")
        for name, histogram in histograms.items():
            if len(histogram) != self.classes:
                raise ValueError(
                    f"{self.classes} classes but {len(histogram)} numbers in label_histogram.{name}"
                )
        if self.validation == "given" and self.counts and "val" not in self.counts:
            raise ValueError("validation = 'given' but counts name no val split")
        return self

    @property
    def unknown_keys(self) -> list[str]:
        """Keys of the file that the schema does not know, sorted."""
        return sorted(self.model_extra or ())

    def meaning(self) -> dict[str, Any]:
        """Return the fields that can change a measured number; the rest only describes."""
        fields = {"task", "metric", "classes", "label_column", "image_column", "class_names"}
        return self.model_dump(mode="json", include=fields | {"validation"})


def data_identity(content: object, card: Card) -> str:
    """Return the SHA-256 of a set's content, what its card means and how pixels are made of it."""
    # The first rules add nothing, so that what was recorded before they were counted stays valid.
    rules = [PIXELS_VERSION] if PIXELS_VERSION > 1 else []
    return digest([content, card.meaning(), *rules])


def make_card(values: Mapping[str, Any], where: str) -> Card:
    """Build a card from the content of a file named `where`.

    Raises
    ------
    UserError
        If a value is missing, has the wrong type or does not fit the others.
    """
    try:
        return Card.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            near = nearest(key, [k for k in values if k not in Card.model_fields])
            hint = f" (it has '{near[0]}')" if near else ""
            raise UserError(f"{where}: the key '{key}' is missing{hint}") from None
        if key == "classes" and first["type"] == "greater_than_equal":
            raise UserError(
                f"{where}: classes = {first['input']}, but a data set needs two classes or more"
            ) from None
        raise UserError(f"{where}: {key + ': ' if key else ''}{reason}") from None


def packaged_card(name: str) -> Card:
    """Read the card of an embedded or catalogue set."""
    return read_card(Path(__file__).parent / "cards" / f"{name}.toml")


def read_card(path: Path) -> Card:
    """Read a card from a TOML file.

    Raises
    ------
    UserError
        If it is absent, no TOML, or does not fit the schema.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not readable TOML: {error}") from error
    return make_card(values, path.name)


class StoredImage(Protocol):
    """One image as it lies in a file, a table or an array."""

    @property
    def where(self) -> str:
        """File (and row) by which a person finds it."""
        ...

    def open(self) -> Image:
        """Decode to a PIL image in RGB; raises `images.CorruptImage` if that is impossible."""
        ...


class Images(Protocol):
    """The images of a split in their fixed order; iterating reads them one after the other."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[StoredImage]: ...


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels.

    Attributes
    ----------
    name : str
        "train", "val" or "test".
    labels : array
        int64 (N,) for a multiclass set, uint8 (N, K) of 0 and 1 for a multilabel one.
    images : Images
        The N images as stored.
    fingerprint : str
        SHA-256 of the content, order and labels included; equal fingerprints mean equal pixels.
    native_size : int or None
        Side in pixels if all images are equally large squares.
    skipped : int
        Corrupt images that were left out on request.
    """

    name: str
    labels: npt.NDArray[Any]
    images: Images
    fingerprint: str
    native_size: int | None = None
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(
        self,
        size: int | None = None,
        *,
        interpolation: Interpolation = "bicubic",
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.uint8]:
        """Return all images, uint8 (N, S, S, 3), memory-mapped read-only from the cache.

        The shorter side is resized to `size` (antialiased) and the centre cut out, as in the
        transfer paper's evaluation (arXiv 2011.13377 app. A.2). The first call decodes, later
        ones open a file.

        Parameters
        ----------
        size : int, optional
            Side S in pixels; None for the native size.
        interpolation : {"bilinear", "bicubic"}
            Used where the stored size differs from `size`.
        progress : Progress
            Shows the decoding.

        Raises
        ------
        UserError
            If `size` is None and the images are not equally large squares.
        """
        from transferbench.data.images import cached_pixels

        return cached_pixels(self, size, interpolation, progress)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Named splits of images and labels with the card that describes them.

    Attributes
    ----------
    fingerprint : str
        Equal to the `identity()` of the source it came from.
    splits : mapping
        "train" always; "val" and "test" where there are such.
    classes : tuple of str
        Class names in the order of the labels.
    repeats : int
        Test images that are also among the training or validation images, pixel for pixel.
    """

    name: str
    card: Card
    fingerprint: str
    splits: Mapping[str, Split]
    classes: tuple[str, ...]
    repeats: int = 0

    @cached_property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.classes)

    @property
    def task(self) -> Task:
        """As on the card."""
        return self.card.task

    @property
    def metric(self) -> Metric:
        """As on the card."""
        return self.card.metric
