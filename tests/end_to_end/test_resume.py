"""`kill -9` of a real process at three moments, then the same command: the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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

# Each is put before the command line in the killed process. A checkpoint ends every epoch.
DRIVER = """
import os, signal, sys
import transferbench.storage as storage
import transferbench.pretrain.loop as loop
from transferbench.cli import main

def kill():
    os.kill(os.getpid(), signal.{signal})

loop.LOG_STEPS = 1
loop.SAVE_SECONDS_AT_EPOCH_END = 0.0
{moment}
sys.argv[0] = "transferbench"
sys.exit(main())
"""
WHOLE = ""
IN_AN_EPOCH = """
write = loop.Log.write
def write_and_kill(log, line):
    write(log, line)
    if line["kind"] == "steps" and line["step"] == 16:
        kill()
loop.Log.write = write_and_kill
"""
IN_A_CHECKPOINT = """
replace, seen = os.replace, []
def kill_before_the_second(source, target):
    if os.path.basename(target) == "checkpoint.pt":
        seen.append(target)
        if len(seen) == 2:
            with open(source, "r+b") as file:
                file.truncate(1000)
            kill()
    replace(source, target)
storage.os.replace = kill_before_the_second
"""
BEFORE_THE_EXPORT = """
loop.export_backbone = lambda *_, **__: kill()
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def pretrain(
    recipe: Path, runs: Path, moment: str = WHOLE, by: str = "SIGKILL"
) -> subprocess.CompletedProcess[str]:
    driver = DRIVER.format(moment=moment, signal=by)
    command = [sys.executable, "-c", driver, "pretrain"]
    return subprocess.run(
        [*command, "--recipe", recipe, "--runs", runs, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        cwd=recipe.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a process that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "recipe.toml").write_text(RECIPE)
    done = pretrain(folder / "recipe.toml", folder / "runs")
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
    ("moment", "by", "returncode", "saved"),
    [
        pytest.param(IN_AN_EPOCH, "SIGKILL", -9, 11, id="killed-in-an-epoch"),
        pytest.param(IN_A_CHECKPOINT, "SIGKILL", -9, 11, id="killed-in-a-checkpoint-write"),
        pytest.param(BEFORE_THE_EXPORT, "SIGKILL", -9, 33, id="killed-before-the-export"),
        pytest.param(IN_AN_EPOCH, "SIGTERM", 143, 16, id="terminated"),
    ],
)
def test_the_same_command_continues_to_the_same_bits(
    moment: str, by: str, returncode: int, saved: int, recipe: Path, tmp_path: Path, straight: Path
) -> None:
    killed = pretrain(recipe, tmp_path / "runs", moment, by)
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
