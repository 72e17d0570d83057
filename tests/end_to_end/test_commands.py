"""The commands as a user types them: what they print, write, and answer with."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.mini import Shell, make_images, tree
from tests.forks import Forked
from transferbench.protocols.knn import KNN

RUN = Path("runs/mini/simclr-images-s0")
RANDOM = "random:resnet10t@32"
RECORDS = Path("leaderboards/mini/records")
README = Path("leaderboards/mini/README.md")
JOB_KEYS = [
    "model", "dataset", "protocol", "seed", "state", "metric", "value", "standard_error", "n",
    "record",
]  # fmt: skip


def test_from_images_to_a_leaderboard(shell: Shell, work: Path) -> None:
    document = shell.json("pretrain --all --board mini")
    (run,) = document["runs"]
    assert list(run) == ["method", "folder", "state", "seconds"]
    assert (run["method"], run["folder"], run["state"]) == ("simclr-v1", RUN.as_posix(), "finished")
    assert shell("pretrain --all --board mini") == f"nothing to do: {RUN} is finished\n"

    before = tree(work)
    dry = shell.json("evaluate --all --board mini --dry-run")
    assert tree(work) == before
    assert dry["board"] == "mini"
    assert [list(job) for job in dry["jobs"]] == [JOB_KEYS] * 6
    assert {(j["model"], j["dataset"], j["protocol"]) for j in dry["jobs"]} == {
        (model, dataset, protocol)
        for model in ("untrained", "simclr")
        for dataset, protocol in (("images", "linear"), ("images", "knn"), ("tags", "linear"))
    }
    assert {(j["state"], j["value"], j["record"]) for j in dry["jobs"]} == {("missing", None, None)}

    jobs = shell.json("evaluate --all --board mini")["jobs"]
    assert {job["state"] for job in jobs} == {"fresh"}
    for job in jobs:
        record = json.loads(Path(job["record"]).read_text())
        assert job["record"] == (
            f"{RECORDS}/{job['model']}/{job['dataset']}/{job['protocol']}-0.json"
        )
        for key in ("metric", "value", "standard_error", "n"):
            assert job[key] == record[key]
        assert 0 <= job["value"] <= 1
        assert str(work) not in json.dumps(record)
        assert set(record["made_with"]["versions"]) >= {"transferbench", "torch", "timm"}
        assert record["cost"]["seconds"]["total"] > 0
    assert shell("evaluate --all --board mini") == (
        "nothing to do: all 6 jobs of 'mini' are fresh\n"
    )
    assert shell.err == ""

    printed = shell("leaderboard --board mini")
    assert "| simclr " in printed
    assert printed.rstrip().endswith(README.as_posix())
    rendered = README.read_text()
    assert "## linear" in rendered
    assert "| tags (map11) |" in re.sub(" +", " ", rendered)
    assert "n/a" in rendered.partition("## knn")[2]
    shell("leaderboard --board mini --check")
    README.write_text(f"Mine.\n\n{rendered}\nMine too.\n")
    shell("leaderboard --board mini --check")
    README.write_text(README.read_text().replace("| simclr ", "| simclR "))
    shell("leaderboard --board mini --check", code=1)
    assert shell.err.count("\n") == 1
    assert "render it with: transferbench leaderboard --board mini" in shell.err
    shell("leaderboard --board mini")
    assert README.read_text() == f"Mine.\n\n{rendered}\nMine too.\n"

    assert shell("leaderboard --board mini --format csv").startswith("protocol,model,images,tags,")
    assert "\\begin{tabular}" in shell("leaderboard --board mini --format latex")
    table = json.loads(shell("leaderboard --board mini --format json --errors"))["tables"][1]
    assert table["rows"][0]["notes"]["tags"] == "n/a"
    assert "standard_errors" in table["rows"][0]
    assert README.read_text().count("transferbench:begin") == 1

    _an_edited_record(shell)
    _a_run_that_is_gone(shell, work)


def _an_edited_record(shell: Shell) -> None:
    """Reported, not deleted, not counted, not run over; the others are untouched by it."""
    path = RECORDS / "simclr" / "images" / "knn-0.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"schema": 1,', b'"schema": 1'))
    bad = path.read_bytes()
    jobs = shell.json("evaluate --all --board mini", code=2)["jobs"]
    assert [j["model"] for j in jobs if j["state"] == "unreadable"] == ["simclr"]
    assert [j["state"] for j in jobs].count("fresh") == 5
    assert shell.err.count("\n") == 1
    assert path.as_posix() in shell.err
    assert "move the file away" in shell.err
    shell("leaderboard --board mini")
    assert f"not counted: {path} is no record" in shell.err
    knn = README.read_text().partition("## knn")[2]
    assert "| unreadable |" in re.sub(" +", " ", knn)
    assert path.read_bytes() == bad
    path.unlink()
    shell("evaluate --all --board mini")
    assert json.loads(path.read_text())["value"] == json.loads(good)["value"]


def _a_run_that_is_gone(shell: Shell, work: Path) -> None:
    """Its jobs are missing with the command that makes it; records and table stand."""
    shell("leaderboard --board mini")
    records, rendered = tree(work / RECORDS), README.read_text()
    RUN.rename("elsewhere")
    jobs = shell.json("evaluate --all --board mini")["jobs"]
    assert [j["state"] for j in jobs if j["model"] == "simclr"] == ["missing"] * 3
    assert [j["state"] for j in jobs if j["model"] == "untrained"] == ["fresh"] * 3
    assert "transferbench pretrain --method simclr-v1 --board mini" in shell.err
    assert tree(work / RECORDS) == records
    shell("leaderboard --board mini")
    assert README.read_text() == rendered
    Path("elsewhere").rename(RUN)
    assert shell("evaluate --all --board mini").startswith("nothing to do")


def test_without_a_board_every_run_meets_every_set_at_hand(shell: Shell, work: Path) -> None:
    assert "no model takes part" in shell("evaluate --all")
    assert not Path("leaderboards/local").exists()
    shell("pretrain --recipe mini.toml")
    shell("pretrain --recipe mini.toml --seed 1 --runs runs/nested")
    shell("pretrain --recipe mini.toml")
    names = [row["name"] for row in shell.json("list runs")["runs"]]
    assert names == ["runs/nested/simclr-v1-images-s1", "runs/simclr-v1-images-s0"]
    jobs = shell.json("evaluate --all --data-root . --dry-run")["jobs"]
    assert {j["dataset"] for j in jobs} == {
        "digits", "drawn-shapes", "drawn-textures", "images", "tags",
    }  # fmt: skip
    assert {j["protocol"] for j in jobs if j["dataset"] == "tags"} == {"linear"}
    assert {j["protocol"] for j in jobs if j["dataset"] == "images"} == {"linear", "knn"}
    models = sorted({j["model"] for j in jobs})
    assert all(
        re.fullmatch(rf"simclr-v1-images-s{s}-[0-9a-f]{{8}}", name) for s, name in enumerate(models)
    )
    assert not Path("leaderboards/local").exists()

    line = "evaluate --all --data-root . --dataset images --protocol knn"
    assert {j["state"] for j in shell.json(line)["jobs"]} == {"fresh"}
    assert shell(line) == "nothing to do: all 2 jobs of 'local' are fresh\n"
    Path("leaderboards/local/board.toml").unlink()
    shell(line)
    assert Path("leaderboards/local/board.toml").exists()
    shell("evaluate --model random:resnet10t@32 --dataset folder:images --protocol knn")
    assert "ran 1 of 1 jobs" in shell(
        "evaluate --model random:resnet10t@32 --dataset folder:images --protocol knn --seed 1"
    )
    printed = shell("leaderboard")
    assert printed.count("simclr-v1-images-s") == 2
    assert "Means over seeds 0, 1" in printed
    assert "leaderboards/local/README.md" in printed


def test_a_column_of_the_local_board_is_not_taken_by_other_data(shell: Shell, work: Path) -> None:
    for place in ("a", "b"):
        make_images(work / place / "x", size=24 if place == "a" else 32, train=4, test=3)
    model = f"evaluate --model {RANDOM} --protocol knn"
    told = "error: the data sets 'folder:a/x' and 'folder:b/x' are both called 'x'; leave one out\n"
    shell(f"{model} --dataset folder:a/x --dataset folder:b/x", code=2)
    assert shell.err == told
    assert not Path("leaderboards/local").exists()
    shell(f"{model} --dataset folder:a/x")
    before = tree(work / "leaderboards")
    shell(f"{model} --dataset folder:b/x", code=2)
    assert "the column 'x' of the board 'local' holds numbers of other data" in shell.err
    assert shell.err.count("\n") == 1
    jobs = shell.json(f"{model} --data-root b --dry-run")["jobs"]
    assert {j["dataset"] for j in jobs if j["state"] == "missing"} >= {"x"}
    assert tree(work / "leaderboards") == before
    assert shell(f"{model} --dataset x --data-root a").startswith("nothing to do: all 1 jobs")


def test_a_copy_of_a_run_is_the_same_model_and_two_damaged_ones_are_two(
    shell: Shell, work: Path
) -> None:
    shell("pretrain --recipe mini.toml")
    shutil.copytree("runs", "runs/copies/again")
    line = "evaluate --all --dataset digits --protocol knn --dry-run"
    assert len(shell.json(line)["jobs"]) == 1
    for file in Path("runs").rglob("backbone.json"):
        file.write_text("{")
    names = [j["model"] for j in shell.json(line)["jobs"]]
    assert len(names) == len(set(names)) == 2


def test_one_bad_set_among_those_named_stops_only_its_jobs(shell: Shell, work: Path) -> None:
    for file in (work / "images/train/red").iterdir():
        file.write_bytes(b"")
    line = f"evaluate --model {RANDOM} --protocol knn --dataset folder:images --dataset digits"
    jobs = shell.json(line, code=1)["jobs"]
    assert [j["state"] for j in jobs] == ["failed", "fresh"]
    assert shell.err.count("corrupt images: 12") == 1
    shell(f"evaluate --model {RANDOM} --protocol linear --dataset folder:images", code=2)
    assert not Path(jobs[0]["record"]).with_name("linear-0.json").exists()


def test_why_there_is_no_job(shell: Shell) -> None:
    line = f"evaluate --model {RANDOM} --protocol knn --dataset folder:tags"
    assert shell(line) == "nothing to do: knn does not apply to tags\n"
    line = "evaluate --board mini --model untrained --protocol knn --shard 2/2"
    assert shell(line) == "nothing to do: the part 2/2 has no job\n"


def test_a_protocol_is_offered_once(shell: Shell) -> None:
    shell(f"evaluate --model {RANDOM} --protocol knn --dataset folder:images")
    shell(f"evaluate --model {RANDOM} --protocol zzz", code=2)
    assert shell.err.startswith("error: unknown protocol 'zzz'; valid: fewshot, ")


def test_a_run_made_anew_is_another_model(shell: Shell) -> None:
    shell("pretrain --recipe mini.toml")
    line = "evaluate --all --dataset folder:images --protocol knn"
    (first,) = shell.json(line)["jobs"]
    shell("pretrain --recipe mini.toml --set optimizer.lr=0.06", code=2)
    assert "--restart" in shell.err
    assert shell(line).startswith("nothing to do")
    shell("pretrain --recipe mini.toml --set optimizer.lr=0.06 --restart")
    (second,) = shell.json(line)["jobs"]
    assert first["model"] != second["model"]
    assert Path(first["record"]).exists()
    printed = shell("leaderboard")
    assert second["model"] in printed
    assert first["model"] not in printed


def test_what_changes_makes_a_record_stale_and_only_that_runs_again(
    shell: Shell, work: Path
) -> None:
    only = "--board mini --model untrained"
    shell(f"evaluate {only}")
    file = work / "leaderboards/mini/board.toml"
    file.write_text(file.read_text().replace("k = 3", "k = 5"))
    states = {j["protocol"]: j["state"] for j in shell.json(f"evaluate {only} --dry-run")["jobs"]}
    assert states == {"linear": "fresh", "knn": "stale"}
    assert "1 stale" in shell("leaderboard --board mini")
    assert "ran 1 of 3 jobs: 3 fresh" in shell(f"evaluate {only}")
    image = next((work / "images" / "test").rglob("*.png"))
    image.unlink()
    states = {j["dataset"]: j["state"] for j in shell.json(f"evaluate {only} --dry-run")["jobs"]}
    assert states == {"images": "stale", "tags": "fresh"}


def test_a_run_of_another_recipe_than_the_boards_is_evaluated_with_a_note(shell: Shell) -> None:
    shell("pretrain --all --board mini --set epochs=2")
    shell("evaluate --board mini --model simclr --protocol knn")
    assert f"note: the run {RUN} comes from another recipe than the board's" in shell.err
    shell("pretrain --all --board mini", code=2)
    assert "epochs" in shell.err
    shell("pretrain --all --board mini --restart")
    shell("evaluate --board mini --model simclr --protocol knn")
    assert "note:" not in shell.err


def test_a_failure_is_recorded_and_run_again_on_request(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    only = "evaluate --board mini --model untrained"
    with monkeypatch.context() as patch:
        patch.setattr(KNN, "run", broken)
        jobs = shell.json(only, code=1)["jobs"]
    assert [j["state"] for j in jobs] == ["fresh", "failed", "fresh"]
    assert shell.err.count("ZeroDivisionError: a bug") == 1
    record = json.loads(Path(jobs[1]["record"]).read_text())
    assert (record["kind"], record["value"]) == ("failed", None)
    assert any("in broken" in line for line in record["details"]["trace"])
    shell(only)
    assert "--retry-failed" in shell.err
    assert "| failed |" in re.sub(" +", " ", shell("leaderboard --board mini"))
    assert "ran 1 of 3 jobs: 3 fresh" in shell(f"{only} --retry-failed")


def test_corrupt_images_are_left_out_on_request_and_counted(shell: Shell, work: Path) -> None:
    (work / "images/train/red/3.png").write_bytes(b"")
    line = "evaluate --model random:resnet10t@32 --dataset folder:images --protocol knn"
    shell(line, code=2)
    (job,) = shell.json(f"{line} --skip-corrupt 1")["jobs"]
    record = json.loads(Path(job["record"]).read_text())
    assert record["details"]["skipped_images"] == {"train": 1}
    (work / "images/train/blue/3.png").write_bytes(b"")
    shell(f"{line} --skip-corrupt 1", code=2)
    shell("pretrain --recipe mini.toml --skip-corrupt 2")


def test_two_processes_on_one_board_lose_no_record(work: Path) -> None:
    arguments = ["evaluate", "--board", "mini", "--model", "untrained", "--quiet"]
    both = [Forked(*arguments, cwd=work) for _ in range(2)]
    assert [process.wait().returncode for process in both] == [0, 0]
    files = sorted(p.relative_to(work / RECORDS).as_posix() for p in (work / RECORDS).rglob("*.*"))
    assert files == [
        "untrained/images/knn-0.json",
        "untrained/images/linear-0.json",
        "untrained/tags/linear-0.json",
    ]
    assert all(json.loads((work / RECORDS / f).read_text())["kind"] == "measured" for f in files)


def test_an_interrupt_of_an_evaluation_keeps_what_is_done(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KNN, "run", interrupted)
        shell("evaluate --board mini --model untrained", code=130)
    assert shell.err.splitlines()[-1] == "interrupted; the same command continues"
    assert "ran 2 of 3 jobs: 3 fresh" in shell("evaluate --board mini --model untrained")


def test_a_scheduler_ends_a_run_with_143_and_the_state_kept(work: Path) -> None:
    run = Forked("pretrain", "--recipe", "mini.toml", "--set", "epochs=9999", cwd=work)
    folder = work / "runs/simclr-v1-images-s0"
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").exists() and time.monotonic() < deadline:
        assert run.process.is_alive(), run.wait()
        time.sleep(0.05)
    run.process.terminate()
    code, _, told = run.wait()
    assert code == 143, told
    assert "Traceback" not in told
    assert told.rstrip().endswith("interrupted; the same command continues")
    assert (folder / "checkpoint.pt").exists()
    assert not (folder / "backbone.json").exists()


def _modules_of(line: str, cwd: Path) -> set[str]:
    """What a command imports, heavy ones only."""
    code = (
        "import sys\nfrom transferbench.cli import main\ncode = main()\n"
        "heavy = {'torch', 'timm', 'sklearn', 'datasets', 'pandas', 'pyarrow', 'matplotlib',"
        " 'torchvision', 'scipy', 'rich', 'pydantic', 'numpy'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *shlex.split(line)],
        cwd=cwd, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stderr.splitlines()[-1].split())


def test_nothing_heavy_is_imported_where_nothing_is_to_do(shell: Shell, work: Path) -> None:
    shell("pretrain --all --board mini")
    shell("evaluate --all --board mini")
    shell("evaluate --all --protocol knn --dataset digits --dataset folder:images")
    light = {"pydantic", "numpy"}
    assert _modules_of("evaluate --all --board mini", work) <= light
    line = "evaluate --all --protocol knn --dataset digits --dataset folder:images"
    assert _modules_of(line, work) <= light
    assert _modules_of("pretrain --all --board mini", work) <= light
    assert _modules_of("--help", work) == set()
    assert _modules_of("evaluate --help", work) <= {"pydantic"}
    assert _modules_of("list methods", work) <= light


def test_lists_are_names_with_what_is_known(shell: Shell) -> None:
    assert {row["name"] for row in shell.json("list methods")["methods"]} >= {"swav", "simclr-v1"}
    listed = {row["name"]: row for row in shell.json("list protocols")["protocols"]}
    assert {"fewshot", "knn", "linear"} <= set(listed)
    assert listed["linear-10pct"]["parameters"] == {"labels": 0.1}
    assert {row["name"] for row in shell.json("list boards")["boards"]} >= {"demo", "mini"}
    assert "recipes" in shell.json("list recipes")
    assert shell.json("list runs") == {"runs": []}
    sets = {row["name"]: row for row in shell.json("list datasets --data-root .")["datasets"]}
    assert sets["images"]["source"] == "folder"
    assert sets["tags"]["task"] == "multilabel"
    assert sets["digits"]["source"] == "embedded"
    assert "digits" in shell("list datasets")


def test_the_data_root_may_come_from_the_environment(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFERBENCH_DATA", ".")
    names = {row["name"] for row in shell.json("list datasets")["datasets"]}
    assert "tags" in names
    line = "evaluate --model random:resnet10t@32 --dataset images --protocol knn"
    assert [j["state"] for j in shell.json(line)["jobs"]] == ["fresh"]


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("images", "data", "2 classes: 24 train, 10 test images"),
        ("tags/dataset.toml", "data", "multi-label"),
        ("mini.toml", "recipe", "pretrains resnet10t (stem standard) with simclr-v1"),
        ("leaderboards/mini", "board", "the board 'mini' (Mini): 2 models"),
        ("mini", "board", "Protocols: linear, knn."),
    ],
)
def test_check_explains(shell: Shell, path: str, kind: str, said: str) -> None:
    finding = shell.json(f"check {path}")
    assert finding["kind"] == kind
    assert said in " ".join(finding["sentences"])
    assert said in shell(f"check {path}")


def test_check_explains_runs_and_weights(shell: Shell) -> None:
    shell("pretrain --all --board mini")
    assert f"Evaluate it with --model run:{RUN}." in shell(f"check {RUN}")
    printed = shell(f"check {RUN}/backbone.safetensors")
    assert "code that a file names is never executed" in printed
    printed = shell(f"check {RUN}/backbone.safetensors@resnet10t")
    assert "It fits resnet10t" in printed


def test_shards_together_do_it_all(shell: Shell) -> None:
    line = "evaluate --board mini --model untrained"
    first = shell.json(f"{line} --shard 1/2")["jobs"]
    assert {j["dataset"] for j in first} == {"images"}
    assert "ran 1 of 1 jobs" in shell(f"{line} --shard 2/2")
    assert shell(line).startswith("nothing to do: all 3 jobs")


def test_quiet_says_nothing(shell: Shell) -> None:
    assert shell("evaluate --board mini --model untrained --protocol knn --quiet") == ""
    assert shell.err == ""
    assert shell("leaderboard --board mini --quiet") == ""


def test_version_and_help_through_the_installed_command() -> None:
    script = Path(sys.executable).with_name("transferbench")
    if not script.exists():
        pytest.skip("the package is not installed with its command")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"transferbench \d+\.\d+\.\d+\S*\n", done.stdout)
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    for name in ("pretrain", "evaluate", "leaderboard", "list", "check"):
        assert name in done.stdout
