"""`kill -9` of a real process at three moments, then the same command: the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import transferbench.pretrain.loop as loop
import transferbench.storage as storage
from tests.forks import Done, forked

# A state of every kind: batch norm, momentum, prototypes, a queue, views of two sizes.
RECIPE = """
method = "swav"
data = "digits"
epochs = 3
batch_size = 128

[backbone]
name = "resnet18"
args = { layers = [1, 1, 1, 1], channels = [8, 8, 16, 16], stem_width = 8 }

[[views]]
count = 2
size = 16
crop = { scale = [0.3, 1.0] }
jitter = { brightness = 0.4, contrast = 0.4 }

[[views]]
size = 8
crop = { scale = [0.1, 0.3] }

[settings]
projector_hidden = 32
projector_output = 16
prototypes = 20
queue_length = 256
queue_from_epoch = 1

[optimizer]
name = "sgd"
lr = 0.1
"""
STEPS_PER_EPOCH = 11


def often() -> None:
    """A checkpoint ends every epoch, and every step is told."""
    loop.LOG_STEPS = 1
    loop.SAVE_SECONDS_AT_EPOCH_END = 0.0


# Each is called before the command in the process that is to be killed.


def in_an_epoch(by: int = signal.SIGKILL) -> None:
    often()
    write = loop.Log.write

    def write_and_kill(log: loop.Log, line: Any) -> None:
        write(log, line)
        if line["kind"] == "steps" and line["step"] == 16:
            os.kill(os.getpid(), by)

    loop.Log.write = write_and_kill  # type: ignore[method-assign]


def terminated_in_an_epoch() -> None:
    in_an_epoch(signal.SIGTERM)


def in_a_checkpoint() -> None:
    often()
    replace, seen = os.replace, []

    def kill_before_the_second(source: Any, target: Any) -> None:
        if os.path.basename(target) == "checkpoint.pt":
            seen.append(target)
            if len(seen) == 2:
                with open(source, "r+b") as file:
                    file.truncate(1000)
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    storage.os.replace = kill_before_the_second  # type: ignore[assignment]


def before_the_export() -> None:
    often()
    loop.export_backbone = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[attr-defined]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "work" / "recipe.toml"
    path.parent.mkdir()
    path.write_text(RECIPE)
    return path


def pretrain(recipe: Path, runs: Path, before: Callable[[], None] = often) -> Done:
    line = ("pretrain", "--recipe", recipe, "--runs", runs, "--device", "cpu")
    return forked(*line, cwd=recipe.parent, before=before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a process that nothing stopped: a new interpreter, not a fork."""
    folder = tmp_path_factory.mktemp("straight") / "work"
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    code = (
        "import sys\nfrom tests.end_to_end.test_resume import often\n"
        "from transferbench.cli import main\noften()\nsys.exit(main())"
    )
    line = ["pretrain", "--recipe", "recipe.toml", "--runs", "runs", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, *line],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "swav-digits-s0"


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    times = {"images_per_second", "seconds"}
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def checkpoint_step(folder: Path) -> int:
    import torch

    step: int = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    return step


@pytest.mark.parametrize(
    ("moment", "returncode", "saved"),
    [
        pytest.param(in_an_epoch, -9, 11, id="killed-in-an-epoch"),
        pytest.param(in_a_checkpoint, -9, 11, id="killed-in-a-checkpoint-write"),
        pytest.param(before_the_export, -9, 33, id="killed-before-the-export"),
        pytest.param(terminated_in_an_epoch, 143, 16, id="terminated"),
    ],
)
def test_the_same_command_continues_to_the_same_bits(
    moment: Callable[[], None],
    returncode: int,
    saved: int,
    recipe: Path,
    tmp_path: Path,
    straight: Path,
) -> None:
    killed = pretrain(recipe, tmp_path / "runs", moment)
    assert killed.returncode == returncode, killed.stderr
    folder = tmp_path / "runs" / "swav-digits-s0"
    assert checkpoint_step(folder) == saved
    assert not (folder / "backbone.json").exists()
    assert json.loads((folder / "run.json").read_text())["state"] == "unfinished"

    again = pretrain(recipe, tmp_path / "runs")
    assert again.returncode == 0, again.stderr
    assert f"continuing at step {saved} of {3 * STEPS_PER_EPOCH}" in again.stderr
    for name in ("backbone.safetensors", "backbone.json", "recipe.toml"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name
    assert log_lines(folder) == log_lines(straight)
    assert {path.name for path in folder.iterdir()} == {path.name for path in straight.iterdir()}
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
