from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.makers import write_classes, write_parquet
from transferbench.data import dataset
from transferbench.data.archive_lists import READERS
from transferbench.data.catalogue import CatalogueSource
from transferbench.data.dataset import packaged_card
from transferbench.data.sources import find_source, sources_at_hand, summaries
from transferbench.errors import UserError

CATALOGUE = {
    *("aircraft", "caltech101", "caltech101-30", "cars", "chestx", "cifar10", "cifar100"),
    *("cropdiseases", "dtd", "eurosat", "flowers", "food", "imagenet", "isic", "pets", "sun397"),
    *("voc2007", "voc2007-ignored"),
}
EMBEDDED = ["digits", "drawn", "drawn-shapes", "drawn-textures"]
CARDS = Path(dataset.__file__).parent / "cards"
HEAVY = ["torch", "torchvision", "timm", "sklearn", "datasets", "pandas", "pyarrow", "PIL", "scipy"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    write_parquet(root / "bees" / "train.parquet", [0, 1, 0, 1])
    write_parquet(root / "bees" / "test.parquet", [0, 1])
    write_classes(root / "digits", {"one": 6, "two": 6})
    (root / "notes").mkdir()
    (root / "README.md").write_text("about")
    return root


def test_names_are_found_in_their_order(root: Path) -> None:
    assert find_source("digits").kind == "embedded"
    assert find_source("digits", data_root=root).kind == "folder"
    assert find_source("catalogue:digits", data_root=root).kind == "embedded"
    assert find_source("bees", data_root=root).name == "bees"
    assert find_source(f"folder:{root / 'bees'}").card.counts == {"train": 4, "test": 2}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("drawn-shaps", "did you mean 'drawn-shapes'"),
        ("bee", "did you mean 'bees'"),
        ("notes", "holds no images|is empty"),
        ("../root/bees", "unknown data set"),
        ("", "unknown data set"),
        ("folder:/no/such/folder", "does not exist"),
        ("catalogue:bees", "unknown data set"),
    ],
)
def test_names_that_are_not_there(root: Path, name: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        find_source(name, data_root=root)


def test_a_data_root_that_is_not_there(tmp_path: Path) -> None:
    for call in (lambda p: find_source("digits", data_root=p), sources_at_hand, summaries):
        with pytest.raises(UserError, match="is not a folder"):
            call(tmp_path / "nowhere")


def test_sets_at_hand(root: Path) -> None:
    assert [s.name for s in sources_at_hand(None)] == EMBEDDED
    with_folders = {s.name: s.kind for s in sources_at_hand(root)}
    assert with_folders == {
        "digits": "folder",
        "drawn": "embedded",
        "drawn-shapes": "embedded",
        "drawn-textures": "embedded",
        "bees": "folder",
    }


def test_the_listing_says_what_a_person_asks(root: Path) -> None:
    (root / "broken").mkdir()
    (root / "broken" / "dataset.toml").write_text("classes = ")
    listed = {s.name: s for s in summaries(root)}
    assert sorted(listed) == sorted([*EMBEDDED, *CATALOGUE, "bees", "broken"])
    bees = listed["bees"]
    assert (bees.kind, bees.at_hand, bees.where) == ("folder", True, str(root / "bees"))
    assert (bees.counts, bees.classes, bees.metric) == ({"train": 4, "test": 2}, 2, "top1")
    assert listed["drawn"].where == "embedded"
    assert "Apache-2.0" in listed["drawn"].licence
    assert not listed["broken"].at_hand
    assert "not readable TOML" in listed["broken"].problem


def test_real_sets_at_hand(shared_data: Path) -> None:
    names = [s.name for s in sources_at_hand(shared_data)]
    assert len(names) == len(set(names)) == 15
    listed = summaries(shared_data)
    assert {s.name for s in listed if not s.at_hand} == CATALOGUE - {"cifar10"}
    assert {s.name: s.kind for s in listed}["cifar10"] == "folder"


@pytest.mark.parametrize("name", sorted({p.stem for p in CARDS.glob("*.toml")}))
def test_a_packaged_card_says_all_that_a_person_asks(name: str) -> None:
    card = packaged_card(name)
    assert card.name == name
    assert not card.unknown_keys
    assert all((card.title, card.citation, card.source, card.split, card.image_size))
    assert sum(card.counts.values()) > card.classes
    assert ("val" in card.counts) == (card.validation == "given")
    if name in CATALOGUE:
        assert card.archive is not None
        assert card.archive.layout in READERS
        assert card.size
        source = find_source(name)
        assert isinstance(source, CatalogueSource)
        assert source.card == card
        assert source.how
        if card.hub is not None and not card.pooled:
            assert set(card.hub.splits) == set(card.counts)
    else:
        assert name in EMBEDDED


def test_telling_sets_apart_imports_nothing_heavy(shared_data: Path, session_cache: Path) -> None:
    for source in sources_at_hand(shared_data):
        source.identity()
    code = f"""
import sys
from pathlib import Path
from transferbench.data import canvas
from transferbench.data import dataset
from transferbench.data.archive_lists import READERS
from transferbench.data.catalogue import CatalogueSource
from transferbench.data.dataset import packaged_card
from transferbench.data.sources import sources_at_hand
def never(*_): raise SystemExit("drawn")
canvas.draw = never
for source in sources_at_hand(Path({str(shared_data)!r})):
    print(source.name, source.identity(), source.card.metric)
found = [name for name in {HEAVY!r} if name in sys.modules]
raise SystemExit(f"imported {{found}}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [" ".join((s.name, s.identity(), s.card.metric)) for s in sources_at_hand(shared_data)]
    assert done.stdout.split("\n")[:-1] == lines
