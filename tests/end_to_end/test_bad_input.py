"""What bad input gets: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.end_to_end.mini import command, make_images, tree
from transferbench.cli import main

RANDOM = "random:resnet10t@32"
ON_DIGITS = ("--dataset", "digits", "--protocol", "knn")
BAD = "images-bad"


def _refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, and return the one line that a refusal is."""
    before = tree(Path.cwd())
    code = main(list(arguments))
    printed, told = capsys.readouterr()
    assert code == 2, told
    assert told.count("\n") == 1, told
    assert told.startswith("error: ")
    assert "Traceback" not in told
    assert printed == ""
    assert tree(Path.cwd()) == before
    return told.removeprefix("error: ").rstrip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "say what to do: pretrain, evaluate, leaderboard, "),
        ("evalute --all", "unknown command 'evalute'; did you mean 'evaluate'?"),
        ("evaluate --modle x", "unknown option '--modle'; did you mean '--model'?"),
        ("evaluate --zzz", "unknown option '--zzz'; valid: --all, --board"),
        ("--verison", "unknown option '--verison'; did you mean '--version'?"),
        ("evaluate --model", "option '--model' requires an argument"),
        ("list", "missing argument"),
        ("list method", "did you mean 'methods'?"),
        ("list methods more", "more"),
        ("pretrain", "say which: --method NAME, --all or --recipe FILE"),
        ("pretrain --method swav --all", "say which"),
        ("pretrain --method swaw", "unknown method 'swaw'; did you mean 'swav'?"),
        ("pretrain --method swav --scale tinny", "unknown scale 'tinny'"),
        ("pretrain --recipe mini.tml", "unknown recipe 'mini.tml'"),
        ("pretrain --recipe absent.toml", "no recipe file absent.toml"),
        ("pretrain --recipe mini.toml --scale tiny", "leave out 'tiny' or 'mini.toml'"),
        ("pretrain --recipe mini.toml --method swav", "is for the method 'simclr-v1'"),
        ("pretrain --recipe mini.toml --data drwn", "data set 'drwn'; did you mean 'drawn'"),
        ("pretrain --recipe mini.toml --seed x", "'--seed'"),
        ("pretrain --recipe mini.toml --device gpu", "'gpu' is no device; valid: cpu, cuda"),
        ("pretrain --recipe mini.toml --set epochs", "write key=value"),
        ("pretrain --recipe mini.toml --set epochs=0", "epochs"),
        ("pretrain --recipe mini.toml --set epochs=many", "epochs"),
        ("pretrain --recipe mini.toml --set batch_size=1.5", "batch_size"),
        ("pretrain --recipe mini.toml --set epoch=1", "did you mean 'epochs'?"),
        ("pretrain --recipe mini.toml --set optimizer.lrr=1", "did you mean 'lr'"),
        ("pretrain --recipe mini.toml --set views.0.crp=1", "did you mean 'crop'"),
        ("pretrain --recipe mini.toml --set settings.temprature=1", "did you mean 'temperature'?"),
        (
            "pretrain --recipe mini.toml --set settings.temperature=0",
            "mini.toml --set settings.temperature=0: settings.temperature must be greater than 0",
        ),
        ("pretrain --recipe mini.toml --set optimizer.name=sdg", "sgd"),
        ("pretrain --recipe mini.toml --set backbone.name=resnet10tt", "resnet10t"),
        ("pretrain --recipe mini.toml --set batch_size=1000", "24"),
        ("pretrain --all --board minni", "unknown board 'minni'; did you mean 'mini'?"),
        ("pretrain --all --board mini --scale tiny", "a board names its own recipes"),
        ("pretrain --method swav --board mini", "unknown method 'swav' in the board 'mini'"),
        ("pretrain --all --board mini --seed 3", "has the seeds 0, not 3"),
        ("evaluate", "say which models: --model REF (repeatable) or --all"),
        (f"evaluate --all --model {RANDOM}", "say which models"),
        ("evaluate --model resnet50", "'resnet50' names no model"),
        ("evaluate --model rnadom:resnet10t@32", "did you mean 'random'?"),
        ("evaluate --model random:resnet10tt@32", "did you mean 'resnet10t'"),
        ("evaluate --model run:runs/absent", "no run folder runs/absent"),
        ("evaluate --model file:absent.pth@resnet10t", "no weights file absent.pth"),
        ("evaluate --model file:absent.pth", "write file:PATH@ARCH"),
        (f"evaluate --model {RANDOM} --dataset digitz", "did you mean 'digits'?"),
        (f"evaluate --model {RANDOM} --dataset drawn", "no test split"),
        (f"evaluate --model {RANDOM} --dataset folder:absent", "absent does not exist"),
        (f"evaluate --model {RANDOM} --protocol liner", "did you mean 'linear'"),
        (f"evaluate --model {RANDOM} --data-root absent", "data root absent is not a folder"),
        (f"evaluate --model {RANDOM} --shard 3/2", "1 <= i <= n"),
        (f"evaluate --model {RANDOM} --device cuda:99 --dataset digits", "cuda:99"),
        (f"evaluate --model {RANDOM} --skip-corrupt -1", "skip-corrupt"),
        ("evaluate --all --board minni", "did you mean 'mini'?"),
        ("evaluate --board mini --model simclrr", "did you mean 'simclr'?"),
        ("evaluate --all --board mini --dataset imagez", "did you mean 'images'?"),
        ("evaluate --all --board mini --protocol kn", "did you mean 'knn'?"),
        ("evaluate --all --board mini --seed 3", "has the seeds 0, not 3"),
        ("leaderboard", "no board leaderboards/local yet"),
        ("leaderboard --board minni", "did you mean 'mini'?"),
        ("leaderboard --board mini --format html", "unknown format 'html'"),
        ("leaderboard --board mini --format cvs", "did you mean 'csv'?"),
        ("leaderboard --board mini --format csv --check", "--check looks at the README"),
        ("check absent", "no file or folder absent"),
        ("check images/train/red/0.png", "is no data folder, recipe or board"),
    ],
)  # fmt: skip
def test_what_is_asked_for(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    assert said in _refused(tuple(arguments.split()), capsys)


def _one_class(folder: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "red")


def _corrupt(folder: Path) -> None:
    file = folder / "train" / "red" / "7.png"
    file.write_bytes(file.read_bytes()[:60])


def _zero_bytes(folder: Path) -> None:
    (folder / "test" / "blue" / "3.png").write_bytes(b"")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _no_images(folder: Path) -> None:
    _empty(folder)
    (folder / "notes.txt").write_text("nothing here")


def _broken_card(folder: Path) -> None:
    (folder / "dataset.toml").write_text("name = ")


def _label_out_of_range(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _empty(folder)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    rows = [{"bytes": buffer.getvalue(), "path": None}] * 4
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"image": rows, "label": [0, 1, 2, 0]}), folder / f"{split}.parquet"
        )
    (folder / "dataset.toml").write_text(
        'name = "x"\ntask = "multiclass"\nmetric = "top1"\nclasses = 2\nclass_names = ["a", "b"]\n'
        "counts = { train = 4, test = 4 }\n"
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, f"{BAD} does not exist"),
        (_empty, f"{BAD} is empty"),
        (_no_images, f"{BAD} holds no images"),
        (_one_class, "one class"),
        (_corrupt, "7.png is corrupt"),
        (_zero_bytes, "3.png is corrupt"),
        (_broken_card, "dataset.toml is not readable TOML"),
        (_label_out_of_range, "label"),
    ],
)
@pytest.mark.parametrize("way", ["evaluate", "pretrain", "check"])
def test_data_folders(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    said: str,
    way: str,
) -> None:
    folder = make_images(work / BAD, train=8, test=4)
    damage(folder)
    arguments = {
        "evaluate": ("evaluate", "--model", RANDOM, "--dataset", f"folder:{BAD}"),
        "pretrain": ("pretrain", "--recipe", "mini.toml", "--data", f"folder:{BAD}"),
        "check": ("check", BAD),
    }[way]
    if way == "check" and not folder.exists():
        said = "no file or folder"
    assert said in _refused(arguments, capsys)


class Code:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, ("open('executed', 'w').close()",)


def _pickle_with_code(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"conv1.weight": Code()}))
        archive.writestr("archive/version", "3\n")


def _bare_pickle_with_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(Code()))


def _truncated(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 64)}, path)
    path.write_bytes(path.read_bytes()[:1000])


def _other_shapes(path: Path) -> None:
    import timm

    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    state["conv1.0.weight"] = torch.zeros(3, 3)
    torch.save(state, path)


def _other_names(path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_truncated, "weights.pth"),
        (_pickle_with_code, "never executed"),
        (_bare_pickle_with_code, "never executed"),
        (_other_shapes, "conv1.0.weight (3, 3) instead of"),
        (_other_names, "names are missing"),
    ],
)
@pytest.mark.parametrize("way", ["evaluate", "check"])
def test_weights_files(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    said: str,
    way: str,
) -> None:
    make(work / "weights.pth")
    arguments = {
        "evaluate": ("evaluate", "--model", "file:weights.pth@resnet10t", *ON_DIGITS),
        "check": ("check", "weights.pth@resnet10t"),
    }[way]
    assert said in _refused(arguments, capsys)
    assert not (work / "executed").exists()


def test_a_truncated_safetensors_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "weights.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    for arguments in (
        ("evaluate", "--model", "file:weights.safetensors@resnet10t", *ON_DIGITS),
        ("check", "weights.safetensors"),
    ):
        assert "truncated or no safetensors file" in _refused(arguments, capsys)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[[models]]", "[[modles]]", "unknown key 'modles'; did you mean 'models'?"),
        ("recipe =", "recip =", "did you mean 'recipe'?"),
        ("k = 3", "kk = 3", "did you mean 'k'?"),
        ('name = "knn"', 'name = "kn"', "unknown protocol 'kn' in the board 'mini'"),
        ("folder:tags", "tagz", "unknown data set 'tagz'"),
        ('recipe = "mini.toml"', 'recipe = "mini.tml"', "unknown recipe 'mini.tml'"),
    ],
)
def test_boards(
    work: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    file = work / "leaderboards" / "mini" / "board.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert said in _refused(("evaluate", "--all", "--board", "mini"), capsys)


SWAV = """
[settings]
projector_hidden = 16
projector_output = 8
prototypes = 6
code_views = [0, 5]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("count = 2", "count = 1", "simclr-v1"),
        ("lr = 0.05", 'lr = 0.05\n[[optimizer.group]]\nname = "bais-and-norm"\nlr = 1.0',
         "unknown parameter group 'bais-and-norm' in [[optimizer.group]]; did you mean"),
        ('name = "resnet10t"', 'name = "resnet10t"\nargs = { layrs = [1] }', "layrs"),
        ('"simclr-v1"', '"swav"', "code_views"),
    ],
)  # fmt: skip
def test_check_refuses_the_recipes_that_pretrain_refuses(
    work: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    file = work / "mini.toml"
    assert old in file.read_text()
    more = SWAV if "swav" in new else ""
    file.write_text(file.read_text().replace(old, new) + more)
    checked = _refused(("check", "mini.toml"), capsys)
    assert said in checked
    assert checked == _refused(("pretrain", "--recipe", "mini.toml"), capsys)


def test_results_that_cannot_be_written(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(work / "leaderboards")
    (work / "leaderboards").write_text("a file")
    said = _refused(("evaluate", "--model", RANDOM, *ON_DIGITS), capsys)
    assert "leaderboards is not a folder" in said


def test_as_a_process_of_its_own(work: Path) -> None:
    """The same through the real entry: code, one line, and nothing on standard output."""
    done = command("evaluate", "--model", RANDOM, "--dataset", "digitz", "--json", cwd=work)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown data set 'digitz'; did you mean 'digits'?\n"
    (work / "weights.pth").write_bytes(pickle.dumps(Code()))
    reference = "file:weights.pth@resnet10t"
    done = command("evaluate", "--model", reference, *ON_DIGITS, cwd=work)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (work / "executed").exists()
