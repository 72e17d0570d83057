"""The wheel, installed outside the checkout, works without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "--quiet", "--wheel-dir", folder, ROOT], check=True)
    return next(folder.glob("transferbench-*.whl"))


def test_wheel_holds_recipes_and_boards_and_no_results(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "transferbench/_recipes/tiny/simclr-v1.toml" in names
    assert "transferbench/_recipes/tiny/ablations/byol-tau-0.99.toml" in names
    assert "transferbench/_leaderboards/demo/board.toml" in names
    quoted = "transferbench/_leaderboards/byol-tau/records/tau-1/imagenet/linear-0.json"
    assert quoted in names
    assert not [n for n in names if "_leaderboards/local" in n or "_leaderboards/demo/records" in n]


@pytest.mark.slow
def test_installed_wheel_pretrains_and_lists(wheel: Path, tmp_path: Path) -> None:
    """An environment of its own holds the package; its dependencies are those of this one."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    site = sysconfig.get_path("purelib")
    python = environment / "bin" / "python"
    own_site = next((environment / "lib").glob("python3*/site-packages"))
    # The dependencies become visible, the editable project does not: path files are not followed.
    (own_site / "dependencies.pth").write_text(site + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--force-reinstall", wheel], check=True)

    command = environment / "bin" / "transferbench"
    here = tmp_path / "elsewhere"
    here.mkdir()
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [command, *arguments], cwd=here, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import transferbench; print(transferbench.__file__)"],
        cwd=here, env=clean, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert str(environment) in where
    assert "tiny/simclr-v1" in run("list", "recipes")
    assert "demo" in run("list", "boards")
    run("pretrain", "--method", "simclr-v1", "--scale", "tiny", "--set", "epochs=1")
    assert (here / "runs" / "simclr-v1-drawn-s0" / "backbone.safetensors").exists()
