"""A method in a package of its own: built, installed, listed, trained, tested and evaluated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).parent / "transferbench_example"

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the plug-in's wheel was installed into, without network or isolation."""
    folder = tmp_path_factory.mktemp("plugin")
    pip = [sys.executable, "-m", "pip"]
    offline = ["--quiet", "--no-deps", "--no-index"]
    wheels = ["--no-build-isolation", "--wheel-dir", str(folder / "wheels")]
    subprocess.run([*pip, "wheel", *offline, *wheels, str(EXAMPLE)], check=True)
    wheel = next((folder / "wheels").glob("transferbench_example-*.whl"))
    target = ["--target", str(folder / "site")]
    subprocess.run([*pip, "install", *offline, *target, str(wheel)], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture
def transferbench(installed: Path, here: Path) -> Command:
    """Run a command with the plug-in beside the package, or without; return its JSON."""

    def run(*arguments: str, plugin: bool = True) -> Any:
        script = "from transferbench.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments, "--json"],
            cwd=here,
            env=os.environ | {"PYTHONPATH": str(installed) if plugin else ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.slow
def test_an_installed_plugin_is_listed_with_its_recipe(transferbench: Command) -> None:
    assert {"name": "vicreg"} in transferbench("list", "methods")["methods"]
    assert {"name": "vicreg"} not in transferbench("list", "methods", plugin=False)["methods"]
    assert {"name": "tiny/vicreg"} in transferbench("list", "recipes")["recipes"]


@pytest.mark.slow
def test_it_trains_and_its_exported_backbone_is_evaluated_without_it(
    transferbench: Command, here: Path
) -> None:
    short = ("--scale", "tiny", "--set", "epochs=1", "--set", "batch_size=512")
    run = transferbench("pretrain", "--method", "vicreg", *short)["runs"][0]
    assert (run["method"], run["state"]) == ("vicreg", "finished")
    assert (here / run["folder"] / "backbone.safetensors").is_file()
    asked = ("--model", f"run:{run['folder']}", "--dataset", "digits", "--protocol", "knn")
    job = transferbench("evaluate", *asked, plugin=False)["jobs"][0]
    assert job["state"] == "fresh"
    assert 0.1 < job["value"] <= 1.0


@pytest.mark.slow
def test_it_passes_the_conformance_suite(installed: Path) -> None:
    """The suite runs over the registry, so a plug-in gets it without a line of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/conformance", "-k", "vicreg", "-m", "", "-rA"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = {line for line in done.stdout.splitlines() if line.startswith("PASSED")}
    for part in ("test_state", "test_distributed", "test_recipes", "test_learning"):
        assert any(f"{part}.py" in line for line in passed), part
