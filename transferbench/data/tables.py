"""Tables with one row an image: parquet files as on the Hub, or what `save_to_disk` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from transferbench.data.dataset import SPLITS, Card, StoredImage
from transferbench.errors import UserError
from transferbench.storage import file_digest

SPLIT_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# train.parquet, train-00000-of-00002.parquet, data/validation-00000-of-00001.parquet
SAVED = "dataset_dict.json"
# What is read from a file at a time: bytes of a column, and images.
BUFFER = 2**20
BATCH = 64
NAMES = re.compile(r"(train|val|valid|validation|test)([-_.].*)?\.parquet")


@dataclass(frozen=True)
class TableFolder:
    """Parquet or arrow files by split, in the order in which their rows follow each other.

    Attributes
    ----------
    linked : bool
        Whether a row may name an image file in the place of its bytes; believed of copies that
        the `datasets` library made from folders of images, not of what a person hands over.
    """

    root: Path
    files: dict[str, tuple[Path, ...]]
    linked: bool = False

    @classmethod
    def find(cls, root: Path, listed: dict[str, list[str]] | None) -> TableFolder | None:
        """Return the files that a card lists, that `save_to_disk` wrote or that names give away.

        Raises
        ------
        UserError
            If a listed file is missing or outside the folder, or no name tells its split.
        """
        if listed:
            files = {}
            for split, names in listed.items():
                files[split] = tuple(root / name for name in names)
                for name, path in zip(names, files[split], strict=True):
                    if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
                        raise UserError(f"{root / 'dataset.toml'}: there is no file '{name}' here")
            return cls(root, {split: files[split] for split in SPLITS if split in files})
        if saved := _saved_to_disk(root):
            return cls(root, saved)
        present = sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])
        if not present:
            return None
        found: dict[str, list[Path]] = {}
        for path in present:
            if match := NAMES.fullmatch(path.name):
                found.setdefault(SPLIT_OF[match[1]], []).append(path)
        if not found:
            raise UserError(
                f"{root}: no parquet file is named after its split, as train.parquet and "
                f"test.parquet are; found {present[0].name}"
            )
        return cls(root, {split: tuple(found[split]) for split in SPLITS if split in found})

    def note(self) -> list[Any]:
        """What a stat shows; the same note means the same content."""
        stats = [(s, p, p.stat()) for s, paths in self.files.items() for p in paths]
        return [[s, str(p.resolve()), t.st_size, t.st_mtime_ns] for s, p, t in stats]

    def content(self) -> dict[str, Any]:
        """Return digests of the stored content by split."""
        return {split: [file_digest(p) for p in paths] for split, paths in self.files.items()}

    def infer(self, stated: dict[str, Any]) -> dict[str, Any]:
        """Return what the files themselves say about columns, task, classes and counts."""
        first = next(iter(self.files.values()))[0]
        schema = _open(first).schema_arrow
        features = _features(schema)
        image = stated.get("image_column") or _image_column(schema, features, first)
        label = stated.get("label_column") or _label_column(schema, features, first)
        if label not in schema.names:
            raise UserError(f"{first} has no column '{label}'; it has {', '.join(schema.names)}")
        multilabel = _is_list(schema.field(label).type)
        names = _class_names(features.get(label))
        counts = {s: sum(_open(p).metadata.num_rows for p in ps) for s, ps in self.files.items()}
        known: dict[str, Any] = {
            "image_column": image,
            "label_column": label,
            "task": "multilabel" if multilabel else "multiclass",
            "metric": "map11" if multilabel else "top1",
            "counts": counts,
        }
        if names is not None:
            known["class_names"] = names
        if "classes" not in stated:
            known["classes"] = (
                len(names) if names else self._count_classes(label, sum(counts.values()))
            )
        return known

    def class_names(self, card: Card) -> tuple[str, ...] | None:
        """Return the names in the schema's metadata (`ClassLabel`), if there are any."""
        first = next(iter(self.files.values()))[0]
        return _class_names(_features(_open(first).schema_arrow).get(card.label_column))

    def labels(self, split: str, card: Card) -> npt.NDArray[Any]:
        """Read the labels of a split, int64 (N,) or uint8 (N, K).

        Raises
        ------
        UserError
            If a label is missing, no integer, or outside 0..classes-1 (file and row are named).
        """
        parts = [self._labels_of(path, card) for path in self.files[split]]
        return np.concatenate(parts)

    def images(self, split: str, card: Card) -> TableImages:
        """Return the images of a split."""
        return TableImages(self.root.name, self.files[split], card.image_column, self.linked)

    def _labels_of(self, path: Path, card: Card) -> npt.NDArray[Any]:
        import pyarrow as pa

        name = card.label_column
        column = _column(path, name)
        multilabel = card.task == "multilabel"
        if _is_list(column.type) != multilabel:
            raise UserError(
                f"{path}: the column '{name}' holds {column.type}, which is not a {card.task} label"
            )
        rows, flat = _flat(column)
        if not pa.types.is_integer(flat.type):
            raise UserError(f"{path}: the column '{name}' holds {flat.type}, not integers")
        for array in (column, flat):
            if array.null_count:
                missing = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
                row = missing if array is column else int(rows[missing])
                raise UserError(f"{path}, row {row}: the label is missing")
        # Of the ways to an array the one that does not import pandas.
        values: npt.NDArray[np.int64] = np.from_dlpack(flat).astype(np.int64)
        if len(outside := np.flatnonzero((values < 0) | (values >= card.classes))):
            raise UserError(
                f"{path}, row {int(rows[outside[0]])}: label {values[outside[0]]} is outside "
                f"0..{card.classes - 1}"
            )
        if not multilabel:
            return values
        hot = np.zeros((len(column), card.classes), np.uint8)
        hot[rows, values] = 1
        return hot

    def _count_classes(self, label: str, images: int) -> int:
        """Return the largest label and one; more classes than images are a slip in the labels."""
        largest = 0
        for path in (p for paths in self.files.values() for p in paths):
            column = _column(path, label)
            rows, flat = _flat(column)
            rows = rows[flat.is_valid().to_numpy(zero_copy_only=False)]
            values = flat.drop_null().to_numpy(zero_copy_only=False)
            if values.dtype.kind not in "iu":
                raise UserError(f"{path}: the column '{label}' holds {flat.type}, not integers")
            largest = max(largest, int(values.max(initial=0)))
            if largest >= images:
                row = int(rows[int(values.argmax())])
                raise UserError(
                    f"{path}, row {row}: label {largest} would make {largest + 1} classes of "
                    f"{images} images; if so, dataset.toml must say classes = {largest + 1}"
                )
        return largest + 1


@dataclass(frozen=True)
class TableImages:
    """Rows of parquet files, read a batch at a time."""

    title: str
    files: tuple[Path, ...]
    column: str
    linked: bool = False

    def __len__(self) -> int:
        return sum(_open(path).metadata.num_rows for path in self.files)

    def __iter__(self) -> Iterator[StoredImage]:
        from transferbench.data.images import EncodedImage

        for path in self.files:
            row = 0
            file = _open(path)
            if self.column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path} has no column '{self.column}'; it has {names}")
            for batch in _guard(path, file.iter_batches(batch_size=BATCH, columns=[self.column])):
                for value in batch.column(0):
                    stored = value.as_py()
                    name = ""
                    if isinstance(stored, dict):
                        name, stored = stored.get("path") or "", stored.get("bytes")
                    beside = f" ({name})" if name else ""
                    where = f"{self.title}/{path.name}, row {row}{beside}"
                    data: bytes | Path | None = stored if isinstance(stored, bytes) else None
                    if data is None and self.linked and Path(name).is_absolute():
                        data = Path(name)
                    yield EncodedImage(where, data)
                    row += 1


class ArrowFile:
    """An arrow file with the part of a parquet file's interface that is used here."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._path = path
        with pa.memory_map(str(path)) as source:
            self.schema_arrow = pa.ipc.open_stream(source).schema

    @cached_property
    def metadata(self) -> Any:
        """An object with `num_rows`."""
        import pyarrow as pa

        batches = self._batches(pa.memory_map)
        return SimpleNamespace(num_rows=sum(batch.num_rows for batch in batches))

    def read(self, columns: list[str]) -> Any:
        """Return a table of some columns."""
        import pyarrow as pa

        batches = [batch.select(columns) for batch in self._batches(pa.memory_map)]
        return pa.Table.from_batches(batches, batches[0].schema if batches else None)

    def iter_batches(self, batch_size: int, columns: list[str]) -> Iterator[Any]:
        """Yield record batches of some columns, in pieces of at most `batch_size` rows.

        They are read, not mapped: the pages of all images would count as this process's memory.
        """
        import pyarrow as pa

        for batch in self._batches(pa.OSFile):
            for start in range(0, batch.num_rows, batch_size):
                yield batch.select(columns).slice(start, batch_size)

    def _batches(self, opened: Callable[[str], Any]) -> Iterator[Any]:
        import pyarrow as pa

        with opened(str(self._path)) as source:
            yield from _guard(self._path, pa.ipc.open_stream(source))


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = "arrow" if path.suffix == ".arrow" else "parquet"
    try:
        if kind == "arrow":
            return ArrowFile(path)
        # Else a row group, which may hold all images, would be read as a whole.
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as {kind}: {_line(error)}") from error


def _saved_to_disk(root: Path) -> dict[str, tuple[Path, ...]]:
    """Return the files by split of a folder that `DatasetDict.save_to_disk` wrote, if it is one."""
    top = root / SAVED
    if not top.is_file():
        return {}
    found: dict[str, tuple[Path, ...]] = {}
    try:
        for name in json.loads(top.read_text())["splits"]:
            if (split := SPLIT_OF.get(name)) is None:
                continue
            state = json.loads((root / name / "state.json").read_text())
            files = [root / name / Path(each["filename"]).name for each in state["_data_files"]]
            found[split] = tuple(files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{top} or a state.json below it is not as save_to_disk writes it") from (
            error
        )
    for path in (p for paths in found.values() for p in paths):
        if not path.is_file():
            raise UserError(f"{path} is missing, but state.json beside it names it")
    return {split: found[split] for split in SPLITS if split in found}


def _column(path: Path, name: str) -> Any:
    import pyarrow as pa

    file = _open(path)
    if name not in file.schema_arrow.names:
        raise UserError(
            f"{path} has no column '{name}'; it has {', '.join(file.schema_arrow.names)}"
        )
    try:
        return file.read(columns=[name]).column(0).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as a table: {_line(error)}") from error


def _guard(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    import pyarrow as pa

    try:
        yield from batches
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as a table: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _flat(column: Any) -> tuple[npt.NDArray[np.int64], Any]:
    """Return all labels of a column one after the other, and the row of each."""
    rows = np.arange(len(column))
    if not _is_list(column.type):
        return rows, column
    lengths: npt.NDArray[np.int64] = np.from_dlpack(column.value_lengths().fill_null(0)).astype(int)
    return np.repeat(rows, lengths), column.flatten()


def _features(schema: Any) -> dict[str, Any]:
    """Return the features that the `datasets` library writes into the schema's metadata."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    while isinstance(feature, list | dict):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            return tuple(str(name) for name in names) if isinstance(names, list) else None
        else:
            feature = feature.get("feature")
    return None


def _image_column(schema: Any, features: dict[str, Any], path: Path) -> str:
    import pyarrow as pa

    marked = [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "Image"]
    stored = [
        field.name
        for field in schema
        if pa.types.is_binary(field.type)
        or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    for name in ("image", *marked, *stored):
        if name in schema.names:
            return str(name)
    raise UserError(f"{path} has no column of images; it has {', '.join(schema.names)}")


def _label_column(schema: Any, features: dict[str, Any], path: Path) -> str:
    marked = [name for name, feature in features.items() if _class_names(feature)]
    for name in ("label", "labels", *marked):
        if name in schema.names:
            return name
    raise UserError(f"{path} has no column 'label' or 'labels'; it has {', '.join(schema.names)}")
