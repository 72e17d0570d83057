"""Names of data sets to sources: what is embedded or plugged in, and folders under a data root."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from transferbench import registry
from transferbench.data.archives import archive_base, is_unpacked_archive
from transferbench.data.catalogue import CatalogueSource
from transferbench.data.folder import CARD_FILE, FolderSource, holds_data
from transferbench.errors import NotAtHand, UserError, unknown
from transferbench.progress import SILENT, Progress

if TYPE_CHECKING:
    from transferbench.data.dataset import ArchiveFile, Card, Dataset, Wanted

Kind = Literal["embedded", "folder", "catalogue"]


class Source(Protocol):
    """Where a data set comes from; a plug-in registers an object of this shape."""

    @property
    def name(self) -> str:
        """The name that records use."""
        ...

    @property
    def kind(self) -> Kind:
        """Made by the package; a folder on this machine; described by a card but fetched."""
        ...

    @property
    def card(self) -> Card:
        """What is said about the set; reading it opens no image."""
        ...

    def identity(self) -> str:
        """Return the SHA-256 of content and meaning of the card, without opening an image.

        Raises
        ------
        NotAtHand
            If the data are not on this machine.
        """
        ...

    def load(
        self, *, skip_corrupt: int = 0, progress: Progress = SILENT, wanted: Wanted | None = None
    ) -> Dataset:
        """Open the data set.

        Parameters
        ----------
        skip_corrupt : int
            Corrupt images to leave out, at most, over all splits; one more is an error.
        wanted : Wanted, optional
            At which pixels will be asked for: a source that has to decode its images to check
            them may fill the cache by the same decoding.
        """
        ...


def find_source(name: str, *, data_root: Path | None = None) -> Source:
    """Return the source called `name`.

    Parameters
    ----------
    name : str
        A folder's name under the data root, which shadows the others; a registered name;
        `folder:PATH`; or `catalogue:NAME` for the registered set even where a folder shadows it.
    data_root : Path, optional
        A folder whose sub-folders are data sets.

    Raises
    ------
    UserError
        If there is no such set (with the nearest names), or the folder is missing or empty.
    """
    if name.startswith("folder:"):
        return FolderSource(Path(name.removeprefix("folder:")))
    if name.startswith("catalogue:"):
        return _registered(name.removeprefix("catalogue:"), data_root)
    if data_root is not None:
        _check_root(data_root)
        folder = data_root / name
        inside = name not in ("", ".", "..") and "/" not in name and folder.is_dir()
        # A folder without images hides no registered set; alone, it is an error to be told.
        if inside and (_is_a_set(folder) or name not in registry.names("datasets")):
            return FolderSource(folder)
    if name in registry.names("datasets"):
        return _registered(name, data_root)
    raise unknown("data set", name, {*registry.names("datasets"), *_folder_names(data_root)})


def sources_at_hand(data_root: Path | None = None) -> list[Source]:
    """Return every registered set that is at hand and every set under the data root.

    A folder takes the place of the registered set of its name. Sets without a test split, such as
    `drawn`, are among them.
    """
    found: dict[str, Source] = {}
    for name in registry.names("datasets"):
        source = _registered(name, data_root)
        if _is_at_hand(source):
            found[name] = source
    for name in _folder_names(data_root):
        found[name] = find_source(name, data_root=data_root)
    return list(found.values())


def catalogued(folder: Path) -> CatalogueSource | None:
    """Return the catalogue's set whose official archive was unpacked to a folder, if one was."""
    if (folder / CARD_FILE).is_file():
        return None
    for name in registry.names("datasets"):
        source = registry.load("datasets", name)
        if isinstance(source, CatalogueSource) and source.card.archive is not None:
            base = archive_base(source.card.archive, name, folder.parent)
            if base is not None and folder in (base, *base.parents):
                return source.under(folder.parent)
    return None


def published(file: str) -> tuple[str, ArchiveFile] | None:
    """Return the catalogue's set that has an archive of this name, and what is known of it."""
    for name in registry.names("datasets"):
        source = registry.load("datasets", name)
        archive = source.card.archive if isinstance(source, CatalogueSource) else None
        if archive is not None and file in archive.files:
            return name, archive.files[file]
    return None


@dataclass(frozen=True)
class Summary:
    """One line of `list datasets`.

    Attributes
    ----------
    at_hand : bool
        Whether it can be loaded now.
    where : str
        "embedded", the folder, or the copy on the Hub; empty if it is not at hand.
    counts : mapping
        Images per split.
    size : str
        What it weighs, or a download of it.
    looked : tuple of str
        Where a set that is not at hand was looked for.
    how : str
        How to get it: a command where there is one.
    problem : str
        Why a folder cannot be used; empty if it can.
    """

    name: str
    kind: Kind
    at_hand: bool
    where: str
    counts: dict[str, int]
    classes: int
    task: str
    metric: str
    licence: str
    size: str = ""
    looked: tuple[str, ...] = ()
    how: str = ""
    problem: str = ""


def summaries(data_root: Path | None = None) -> list[Summary]:
    """Describe every registered set and every folder under the data root, sorted by name."""
    names = sorted({*registry.names("datasets"), *_folder_names(data_root)})
    return [_summary(name, data_root) for name in names]


def _summary(name: str, data_root: Path | None) -> Summary:
    where = ""
    kind: Kind = "folder"
    try:
        source = find_source(name, data_root=data_root)
        where, kind = _place(source), source.kind
        card = source.card
    except UserError as error:
        return Summary(name, kind, False, where, {}, 0, "", "", "", problem=str(error))
    found = Summary(
        name=name,
        kind=kind,
        at_hand=_is_at_hand(source),
        where=where,
        counts=card.counts,
        classes=card.classes,
        task=card.task,
        metric=card.metric,
        licence=card.licence,
        size=card.size or _weight(source),
        looked=tuple(getattr(source, "looked", ())),
        how=getattr(source, "how", ""),
    )
    if isinstance(source, CatalogueSource):
        problem = "" if found.at_hand else source.torn
    else:
        try:
            source.identity()
            problem = ""
        except UserError as error:
            problem = str(error)
    return replace(found, at_hand=found.at_hand and not problem, problem=problem)


def _is_at_hand(source: Source) -> bool:
    """Return whether a set's images are here; of large ones without reading them."""
    if isinstance(source, CatalogueSource):
        return bool(source.place)
    try:
        source.identity()
    except NotAtHand:
        return False
    except UserError:
        return True
    return True


def _weight(source: Source) -> str:
    """Return the bytes of a folder's tables, in MB; other files are not worth their counting."""
    if not isinstance(source, FolderSource):
        return ""
    return f"{source.bytes / 1e6:,.1f} MB" if source.bytes else ""


def _place(source: Source) -> str:
    if isinstance(source, CatalogueSource):
        return source.place
    folder = getattr(source, "folder", None)
    return str(folder) if folder is not None else source.kind


def _registered(name: str, data_root: Path | None) -> Source:
    source: Source = registry.load("datasets", name)
    return source.under(data_root) if isinstance(source, CatalogueSource) else source


def _is_a_set(folder: Path) -> bool:
    """Return whether a folder is a set of one's own: a card, tables, or class folders.

    A folder that an official archive was unpacked to, or in, is the catalogue's.
    """
    if (folder / CARD_FILE).is_file():
        return True
    if is_unpacked_archive(folder):
        return False
    name = folder.name
    if name in registry.names("datasets"):
        source = _registered(name, folder.parent)
        if isinstance(source, CatalogueSource) and Path(source.place) == folder:
            return False
    return holds_data(folder)


def _check_root(data_root: Path) -> None:
    if not data_root.is_dir():
        raise UserError(f"the data root {data_root} is not a folder")


def _folder_names(data_root: Path | None) -> list[str]:
    if data_root is None:
        return []
    _check_root(data_root)
    folders = sorted(p for p in data_root.iterdir() if p.is_dir() and p.name[0] not in "._")
    return [p.name for p in folders if _is_a_set(p)]
