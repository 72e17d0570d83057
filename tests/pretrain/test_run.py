"""Run folders: what is in them, and who may write into which."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import transferbench.pretrain.run as run_module
from tests.pretrain.conftest import NoiseSource, make_recipe, train
from transferbench.backbones.export import read_export
from transferbench.errors import NotAtHand, UserError
from transferbench.pretrain.log import read_log
from transferbench.pretrain.recipe import dumps, parse_recipe, resolve
from transferbench.pretrain.run import (
    FILES,
    Run,
    finished_run,
    list_runs,
    pretrain,
    run_folder,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "swav-noise-s0"
    typed = ["/somewhere/bin/transferbench", "pretrain", "--data-root", "/home/me/data", "a b"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", typed)
        train(folder)
    return folder


def notes(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def test_a_finished_run_has_every_file_that_its_readme_explains(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == {*FILES, ".lock"}
    readme = (done / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in FILES)


def test_run_json_tells_versions_data_cost_and_the_command_without_absolute_paths(
    done: Path,
) -> None:
    told = notes(done)
    assert told["state"] == "finished"
    assert told["data"] == {
        "name": "noise", "kind": "embedded", "fingerprint": "noise-40-1",
        "images": 40, "image_size": 16, "skipped": 0,
    }  # fmt: skip
    assert told["steps"] == 15
    assert told["seconds"] > 0
    assert told["images_per_second"] > 0
    assert {"transferbench", "torch", "timm", "python"} <= set(told["made_with"])
    assert told["command"] == "transferbench pretrain --data-root data 'a b'"


def test_the_recipe_in_the_folder_is_resolved_and_reads_back(done: Path) -> None:
    held = parse_recipe(tomllib.loads((done / "recipe.toml").read_text()), "there")
    assert held == resolve(make_recipe())
    assert Run.open(done) == Run(done, held, "finished", notes(done)["seconds"])


def test_the_backbone_is_described_at_the_recipes_size_and_normalization(done: Path) -> None:
    export = read_export(done)
    assert export.preprocessing.input_size == 16
    assert export.preprocessing.mean == (0.485, 0.456, 0.406)
    assert export.preprocessing.interpolation == "bilinear"


def test_the_log_has_steps_epochs_and_what_the_method_watches(done: Path) -> None:
    lines = read_log(done / "log.jsonl")
    assert [line["kind"] for line in lines if line["kind"] != "warning"] == [
        "steps", "epoch", "steps", "epoch", "steps", "epoch",
    ]  # fmt: skip
    steps, epoch = lines[0], next(line for line in lines if line["kind"] == "epoch")
    assert {"loss", "lr", "images_per_second", "code_entropy"} <= set(steps)
    # RankMe is left out of batches too small to tell a low rank.
    assert {"spread", "seconds"} <= set(epoch)


def test_the_curves_are_a_picture_with_ink(done: Path) -> None:
    with Image.open(done / "loss.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 50


def test_a_finished_run_is_found_done_without_loading_data(done: Path) -> None:
    source = NoiseSource()
    before = {path.name: path.stat().st_mtime_ns for path in done.iterdir()}
    assert train(done, source).state == "finished"
    # An explicit default makes the same resolved recipe.
    assert train(done, source, precision="float32", eval_size=16).state == "finished"
    assert source.loads == 0
    assert {path.name: path.stat().st_mtime_ns for path in done.iterdir()} == before
    assert finished_run(make_recipe(), done) is not None
    assert finished_run(make_recipe(epochs=9), done) is None


def test_a_finished_run_is_told_without_torch(done: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.pretrain.conftest import make_recipe\n"
        "from transferbench.pretrain.run import finished_run\n"
        f"print(finished_run(make_recipe(), Path({str(done)!r})).state, 'torch' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert told.stdout.split() == ["finished", "False"]


def test_another_recipe_is_refused_with_the_keys_that_differ(done: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(done, epochs=4, seed=3)
    assert "epochs (4 / 3), seed (3 / 0)" in str(caught.value)
    assert "--restart" in str(caught.value)
    assert notes(done)["state"] == "finished"


def test_a_wrong_setting_is_told_with_the_recipes_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^test.toml: unknown key 'settings.prototype'; did you"):
        train(tmp_path / "run", settings={"prototype": 4})
    assert not (tmp_path / "run").exists()


def test_changed_images_are_refused(done: Path) -> None:
    with pytest.raises(UserError, match=r"images of 'noise' are not those .* --restart"):
        train(done, NoiseSource(version="2"))


def test_absent_images_do_not_unfinish_a_run(done: Path) -> None:
    class Gone(NoiseSource):
        def identity(self) -> str:
            raise NotAtHand("gone")

    assert train(done, Gone()).state == "finished"


def test_restart_replaces_the_run(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    (tmp_path / "mine.txt").write_text("kept")
    source: Any = NoiseSource()
    recipe = make_recipe(epochs=2)
    run = pretrain(recipe, tmp_path, source=source, device="cpu", restart=True)
    assert run.state == "finished"
    assert run.recipe.epochs == 2
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert {line["epoch"] for line in read_log(tmp_path / "log.jsonl")} == {0, 1}


def test_a_checkpoint_of_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(UserError, match=r"are not those that the run in .* --restart"):
        train(tmp_path, NoiseSource(version="2"))


def test_a_torn_checkpoint_is_one_line_that_says_restart(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    (tmp_path / "run.json").unlink()
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"checkpoint.pt cannot be read .* --restart"):
        train(tmp_path, epochs=1)


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is pretraining into"):
            train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert train(tmp_path, epochs=1).state == "finished"


def test_a_run_finished_by_another_process_meanwhile_is_found_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, epochs=1)
    look = run_module.finished_run
    monkeypatch.setattr(run_module, "finished_run", lambda *_: None)
    weights = (tmp_path / "backbone.safetensors").stat().st_mtime_ns

    class Slow(NoiseSource):
        def load(self, **options: Any) -> Any:
            # From here on the other process is done.
            monkeypatch.setattr(run_module, "finished_run", look)
            return super().load(**options)

    assert train(tmp_path, Slow(), epochs=1).state == "finished"
    assert (tmp_path / "backbone.safetensors").stat().st_mtime_ns == weights


def test_leavings_of_a_kill_inside_a_write_are_swept(tmp_path: Path) -> None:
    stray = tmp_path / ".checkpoint.pt.abc123.tmp"
    stray.write_bytes(b"half")
    train(tmp_path, epochs=1)
    assert not stray.exists()


def test_folders_and_names() -> None:
    recipe = make_recipe(seed=3, data="folder:/home/me/My images/")
    runs = Path("runs")
    assert run_folder(recipe, runs=runs) == Path("runs/swav-My-images-s3")
    assert run_folder(recipe, runs=runs, board="demo", model="big") == Path(
        "runs/demo/big-My-images-s3"
    )
    assert make_recipe(data="catalogue:cifar10").data_name == "cifar10"


def test_listing_leaves_out_what_is_no_run(done: Path, tmp_path: Path) -> None:
    runs = list_runs(done.parent)
    assert [run.folder for run in runs] == [done]
    assert runs[0].reference == f"run:{done}"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert list_runs(tmp_path) == []
    with pytest.raises(UserError, match="is not a run folder"):
        Run.open(tmp_path)


def test_an_unfinished_run_tells_the_seconds_that_its_log_counts(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(dumps(make_recipe()))
    assert Run.open(tmp_path).seconds == 0
    lines = [
        {"kind": "epoch", "step": 5, "epoch": 0, "seconds": 7.5},
        {"kind": "epoch", "step": 10, "epoch": 1, "seconds": 15.5},
        {"kind": "steps", "step": 15, "epoch": 2},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Run.open(tmp_path).seconds == 15.5
    (tmp_path / "run.json").write_text('{"state": "finished", "seconds": 20.0}')
    assert Run.open(tmp_path).seconds == 20


def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import transferbench.pretrain.loop as loop
    import transferbench.storage as storage

    monkeypatch.setattr(loop, "SAVE_SECONDS_AT_EPOCH_END", 0.0)
    replace, saved = storage.os.replace, []

    def fill_up(source: str, target: Path) -> None:
        if target.name == "checkpoint.pt":
            saved.append(target)
            if len(saved) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(storage.os, "replace", fill_up)
    with pytest.raises(UserError, match=r"cannot write .*checkpoint.pt: No space left on device"):
        train(tmp_path)
    import torch

    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5
    monkeypatch.setattr(storage.os, "replace", replace)
    assert train(tmp_path).state == "finished"
