"""Every method learns from the drawn images: the board `tiny`, run as a user runs it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.end_to_end.mini import Shell
from transferbench.registry import names

ROOT = Path(__file__).parents[2]
TASKS = ("drawn-shapes", "drawn-textures")

# Where the neighbours of MAE's features do not tell, a linear probe must.
JUDGED_BY = {"mae": "linear"}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the committed board and none of its records."""
    folder = tmp_path / "leaderboards" / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "leaderboards" / "tiny" / "board.toml", folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_every_method_beats_its_untrained_network(
    board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The committed recipes, trained and evaluated here: an hour on two cores."""
    shell = Shell(capsys)
    shell("pretrain --all --board tiny --device cpu")
    shell("evaluate --all --board tiny --device cpu")
    table = shell("leaderboard --board tiny")
    with capsys.disabled():
        print(table)
    assert not behind(board)


def test_the_committed_records_tell_of_methods_that_learned() -> None:
    assert not behind(ROOT / "leaderboards" / "tiny")


def behind(board: Path) -> list[str]:
    """Tell which methods are not above untrained networks by twice the bootstrap error.

    Compared are means of three seeds.
    """
    import transferbench as tb

    means = tb.results(board).groupby(["protocol", "model", "dataset"])[
        ["value", "standard_error"]
    ].mean()  # fmt: skip
    return [
        f"{method} on {task}: {mine:.4f}, random {base:.4f} + 2 x {error:.4f}"
        for method in names("methods")
        for task in TASKS
        for mine, base, error in [compared(means, method, task)]
        if not mine > base + 2 * error
    ]


def compared(means: pd.DataFrame, method: str, task: str) -> tuple[float, float, float]:
    """A method's and its untrained network's mean score, and the bootstrap error of the former.

    Both answer the same test images, so their errors do not add up as independent ones would.
    """
    protocol = JUDGED_BY.get(method, "knn")
    untrained = "random-vit" if method == "mae" else "random"
    mine: Any = means.loc[(protocol, method, task)]
    base: Any = means.loc[(protocol, untrained, task)]
    return float(mine["value"]), float(base["value"]), float(mine["standard_error"])
