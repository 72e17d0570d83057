"""A data set on the Hub: a card beside this file says all there is to say."""

from __future__ import annotations

from pathlib import Path

from transferbench.data.catalogue import CatalogueSource

LEAVES = CatalogueSource("leaves", card_file=Path(__file__).with_name("leaves.toml"))
