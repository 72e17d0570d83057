"""The catalogue: sets that a packaged card describes and that have to be fetched."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transferbench.data.archives import ArchiveLayout, find_archive, packed, places
from transferbench.data.dataset import (
    Card,
    Dataset,
    Wanted,
    data_identity,
    packaged_card,
    read_card,
)
from transferbench.data.hub import HubLayout
from transferbench.data.loading import open_dataset
from transferbench.errors import NotAtHand
from transferbench.progress import SILENT, Progress


class CatalogueSource:
    """A set of the catalogue.

    It is read from the official archives if they lie unpacked below the data root, else from a
    Hub copy that was fetched.

    Parameters
    ----------
    name : str
        Of the set and, unless another file is given, of its packaged card.
    card_file : Path, optional
        A plug-in's card.
    data_root : Path, optional
        Where archives are looked for.
    """

    kind: Literal["catalogue"] = "catalogue"

    def __init__(
        self, name: str, *, card_file: Path | None = None, data_root: Path | None = None
    ) -> None:
        self.name = name
        self.card_file = card_file
        self.data_root = data_root

    def under(self, data_root: Path | None) -> CatalogueSource:
        """Return the same set, looked for below another data root."""
        return CatalogueSource(self.name, card_file=self.card_file, data_root=data_root)

    @cached_property
    def card(self) -> Card:
        """The card."""
        return read_card(self.card_file) if self.card_file else packaged_card(self.name)

    @property
    def place(self) -> str:
        """Where the images are, or an empty text."""
        layout = self._found
        if layout is None:
            return ""
        return layout.where if isinstance(layout, HubLayout) else str(layout.place)

    @property
    def looked(self) -> list[str]:
        """Where the images are looked for."""
        hub, archive = self.card.hub, self.card.archive
        below = [str(p) for p in places(archive, self.name, self.data_root)] if archive else []
        copy = [f"the Hub's cache ({hub.path} at {hub.revision[:12]})"] if hub else []
        return [*(below or ["no data root was given"]), *copy]

    @property
    def how(self) -> str:
        """How to get the images: a command where there is one."""
        if self.card.hub is not None:
            return f"transferbench fetch {self.name}"
        archive = self.card.archive
        return archive.get.replace("DIR", str(self.data_root or "DIR")) if archive else ""

    @property
    def torn(self) -> str:
        """What is wrong with archives that lie there packed, or an empty text."""
        archive = self.card.archive
        return packed(archive, self.name, self.data_root) if archive else ""

    def absence(self) -> NotAtHand:
        """Return the error that says where the set was looked for and how to get it."""
        said = f"; {self.torn}" if self.torn else ""
        return NotAtHand(
            f"the images of '{self.name}' are not at hand (looked in {', '.join(self.looked)})"
            f"{said}",
            self.how,
        )

    def identity(self) -> str:
        """Return the SHA-256 of content and card; raises NotAtHand without the images."""
        return data_identity(self._content, self.card)

    def load(
        self, *, skip_corrupt: int = 0, progress: Progress = SILENT, wanted: Wanted | None = None
    ) -> Dataset:
        """Read labels, check them and every image, and return the data set.

        Raises
        ------
        NotAtHand
            Without the images.
        UserError
            If the images are others than the card says, or too many are corrupt.
        """
        return open_dataset(
            self.name,
            self.place or self.name,
            self._layout,
            self._content,
            self.card,
            skip_corrupt=skip_corrupt,
            progress=progress,
            wanted=wanted,
        )

    @cached_property
    def _found(self) -> ArchiveLayout | HubLayout | None:
        card = self.card
        if card.archive is not None:
            place = find_archive(card.archive, self.name, self.data_root)
            if place is not None:
                return ArchiveLayout(place, card)
        return HubLayout.find(card.hub, pooled=card.pooled) if card.hub is not None else None

    @property
    def _layout(self) -> ArchiveLayout | HubLayout:
        if self._found is None:
            raise self.absence()
        return self._found

    @cached_property
    def _content(self) -> dict[str, Any]:
        return self._layout.content()


AIRCRAFT = CatalogueSource("aircraft")
CALTECH101 = CatalogueSource("caltech101")
CALTECH101_30 = CatalogueSource("caltech101-30")
CARS = CatalogueSource("cars")
CHESTX = CatalogueSource("chestx")
CIFAR10 = CatalogueSource("cifar10")
CIFAR100 = CatalogueSource("cifar100")
CROPDISEASES = CatalogueSource("cropdiseases")
DTD = CatalogueSource("dtd")
EUROSAT = CatalogueSource("eurosat")
FLOWERS = CatalogueSource("flowers")
FOOD = CatalogueSource("food")
IMAGENET = CatalogueSource("imagenet")
ISIC = CatalogueSource("isic")
PETS = CatalogueSource("pets")
SUN397 = CatalogueSource("sun397")
VOC2007 = CatalogueSource("voc2007")
VOC2007_IGNORED = CatalogueSource("voc2007-ignored")
