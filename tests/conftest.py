"""Shared set-up: every test gets its own cache folder, and no test reaches the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", default=None, help="a folder of golden cases to run instead")


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole test run, away from the user's; drawn images are made once."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["TRANSFERBENCH_CACHE"] = str(folder)
    return folder


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRANSFERBENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def shared_data() -> Path:
    """The folder of real image sets beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real image sets are not beside this checkout (../shared/data)")
    return folder
