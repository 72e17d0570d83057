from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.mini import Shell, make_workplace


@pytest.fixture(scope="session")
def mini_workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; a test works in a copy."""
    return make_workplace(tmp_path_factory.mktemp("mini") / "work")


@pytest.fixture
def work(mini_workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images, a recipe and a board, current for this test."""
    folder = tmp_path / "work"
    shutil.copytree(mini_workplace, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TRANSFERBENCH_DATA", raising=False)
    return folder


@pytest.fixture
def shell(work: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Commands in the working directory."""
    return Shell(capsys)
