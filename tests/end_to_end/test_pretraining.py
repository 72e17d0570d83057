"""Runs as a user meets them: which stand, which are refused, and how far they got."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.mini import Shell, tree

RUN = Path("runs/mini/simclr-images-s0")


def test_a_finished_run_of_other_images_is_refused_and_of_absent_images_stands(
    shell: Shell, work: Path
) -> None:
    shell("pretrain --all --board mini")
    before = tree(work / "runs")
    (work / "images").rename(work / "away")
    assert shell("pretrain --all --board mini").startswith("nothing to do: ")
    (work / "away").rename(work / "images")
    next((work / "images" / "train").rglob("*.png")).unlink()
    assert shell("pretrain --all --board mini", code=2) == ""
    assert shell.err == (
        f"error: the images of 'folder:images' are not those that the run in {RUN} was trained "
        "on; --restart replaces it, another --runs keeps it\n"
    )
    assert tree(work / "runs") == before


def test_a_refused_recipe_does_not_stop_the_others(shell: Shell, work: Path) -> None:
    (work / "big.toml").write_text(
        (work / "mini.toml").read_text().replace("batch_size = 8", "batch_size = 1000")
    )
    board = work / "leaderboards/mini/board.toml"
    first = '[[models]]\nname = "big"\nrecipe = "big.toml"\n\n[[models]]\nname = "untrained"'
    board.write_text(board.read_text().replace('[[models]]\nname = "untrained"', first))
    document = shell.json("pretrain --all --board mini", code=2)
    assert [run["state"] for run in document["runs"]] == ["refused", "finished"]
    said = (
        "error: runs/mini/big-images-s0: batch_size is 1000, but 'folder:images' has 24 training "
        "images: not one batch; lower batch_size"
    )
    assert [line for line in shell.err.splitlines() if "batch_size" in line] == [said]
    assert not (work / "runs/mini/big-images-s0").exists()
    assert "runs/mini/big-images-s0: refused\n" in shell("pretrain --all --board mini", code=2)


def test_what_every_recipe_is_refused_for_is_told_once(shell: Shell) -> None:
    assert shell("pretrain --all --scale tiny --data drwn --quiet", code=2) == ""
    assert shell.err.startswith("error: unknown data set 'drwn'; did you mean 'drawn'")
    assert shell.err.count("\n") == 1


def test_check_tells_how_long_an_unfinished_run_has_trained(shell: Shell, work: Path) -> None:
    shell("pretrain --all --board mini")
    (work / RUN / "run.json").unlink()
    log = work / RUN / "log.jsonl"
    log.write_text('{"kind": "epoch", "step": 3, "epoch": 0, "seconds": 41.7}\n')
    assert "it is unfinished after 42 s of training." in shell(f"check {RUN}")
    log.unlink()
    assert "it is unfinished.\n" in shell(f"check {RUN}")
