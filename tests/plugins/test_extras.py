"""Data sets, a protocol and a backbone in a package of their own: built, installed and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXTRAS = Path(__file__).parent / "transferbench_extras"

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the plug-in's wheel was installed into, without network or isolation."""
    folder = tmp_path_factory.mktemp("plugin")
    pip = [sys.executable, "-m", "pip"]
    offline = ["--quiet", "--no-deps", "--no-index"]
    wheels = ["--no-build-isolation", "--wheel-dir", str(folder / "wheels")]
    subprocess.run([*pip, "wheel", *offline, *wheels, str(EXTRAS)], check=True)
    wheel = next((folder / "wheels").glob("transferbench_extras-*.whl"))
    target = ["--target", str(folder / "site")]
    subprocess.run([*pip, "install", *offline, *target, str(wheel)], check=True)
    return folder / "site"


@pytest.fixture
def transferbench(installed: Path, tmp_path: Path) -> Command:
    """Run a command with the plug-in beside the package; return its JSON, or its complaint."""

    def run(*arguments: str, code: int = 0) -> Any:
        script = "import sys; from transferbench.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments, "--json"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else done.stderr

    return run


@pytest.mark.slow
def test_an_installed_plugin_is_listed(transferbench: Command) -> None:
    sets = {row["name"]: row for row in transferbench("list", "datasets")["datasets"]}
    assert sets["stripes"]["at_hand"]
    leaves = sets["leaves"]
    assert (leaves["at_hand"], leaves["size"], leaves["licence"]) == (False, "12 MB", "CC0")
    assert leaves["get"] == "transferbench fetch leaves"
    assert {"name": "centroid"} in transferbench("list", "protocols")["protocols"]


@pytest.mark.slow
def test_its_backbone_solves_its_set_by_its_protocol_and_by_ours(transferbench: Command) -> None:
    asked = ("--model", "thumbnail:16", "--dataset", "stripes", "--device", "cpu")
    protocols = ("--protocol", "centroid", "--protocol", "knn")
    jobs = transferbench("evaluate", *asked, *protocols)["jobs"]
    assert [(job["protocol"], job["state"], job["n"]) for job in jobs] == [
        ("centroid", "fresh", 40),
        ("knn", "fresh", 40),
    ]
    # Stripes that lie do not change along a row; nothing could be easier.
    assert [job["value"] for job in jobs] == [1.0, 1.0]
    again = transferbench("evaluate", *asked, *protocols, "--dry-run")["jobs"]
    assert {job["state"] for job in again} == {"fresh"}
    ours = ("--model", "random:resnet10t@32", "--dataset", "stripes", "--protocol", "centroid")
    assert transferbench("evaluate", *ours)["jobs"][0]["state"] == "fresh"


@pytest.mark.slow
def test_what_it_lacks_is_told_as_of_any_other(transferbench: Command) -> None:
    said = transferbench("evaluate", "--model", "thumbnail:x", "--dataset", "stripes", code=2)
    assert "the side is a number of pixels" in said
    said = transferbench("evaluate", "--model", "thumbnail:16", "--dataset", "leaves", code=2)
    assert "transferbench fetch leaves" in said
