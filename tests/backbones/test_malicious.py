"""Pickles that would do harm: told in one line and never executed, whichever way they come in."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.backbones import makers
from tests.backbones.makers import Bomb, thin
from tests.backbones.test_releases import FILES, VITS, small_vit
from transferbench.backbones.build import build_network
from transferbench.backbones.export import IDENTITY, WEIGHTS, ExportedBackbone, export_backbone
from transferbench.backbones.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings
from transferbench.backbones.weights import take_backbone
from transferbench.cli import main
from transferbench.errors import UserError
from transferbench.pretrain.checkpoint import load_checkpoint
from transferbench.storage import digest

TINY = NetworkSettings(name="resnet10t", args={"channels": [8, 8, 16, 16]})
ARCH = 'resnet10t@32?args={"channels":[8,8,16,16]}'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a bomb leaves its mark; it is not there in the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def saved(content: Any, kind: str) -> bytes:
    if kind.startswith("pickle"):
        return pickle.dumps(content, protocol=int(kind[-1]))
    memory = io.BytesIO()
    torch.save(
        content,
        memory,
        _use_new_zipfile_serialization="old" not in kind,
        pickle_protocol=int(kind[-1]),
    )
    return memory.getvalue()


KINDS = ["torch 2", "torch 4", "torch old 2", "torch old 4", *(f"pickle {p}" for p in range(6))]


def as_file(data: bytes) -> str:
    Path("net.pth").write_bytes(data)
    return f"file:net.pth@{ARCH}"


def as_hub_folder(data: bytes) -> str:
    Path("hub").mkdir()
    Path("hub/config.json").write_text(
        '{"architecture": "resnet10t", "model_args": {"channels": [8, 8, 16, 16]}}'
    )
    Path("hub/pytorch_model.bin").write_bytes(data)
    return "hub:hub"


def as_run(data: bytes) -> str:
    """A run whose description is made to fit the file."""
    export_backbone(
        Path("run"),
        build_network(TINY, seed=0),
        TINY,
        name="x",
        input_size=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
    )
    Path("run", WEIGHTS).write_bytes(data)
    told = ExportedBackbone.model_validate_json(Path("run", IDENTITY).read_text())
    told = told.model_copy(update={"weights": digest(data)})
    Path("run", IDENTITY).write_text(told.model_dump_json())
    return "run:run"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("enter", [as_file, as_hub_folder, as_run], ids=lambda f: f.__name__)
def test_every_way_to_a_backbone_refuses_it_beside_honest_weights(
    place: Path, capsys: pytest.CaptureFixture[str], enter: Callable[[bytes], str], kind: str
) -> None:
    state: dict[str, Any] = build_network(TINY, seed=0).state_dict()
    if kind.startswith("pickle"):
        state = {key: value.numpy() for key, value in state.items()}
    text = enter(saved({"state_dict": state, "optimizer": Bomb(place)}, kind))
    assert main(["export", text, "--to", "safetensors", "--out", "out"]) == 2
    said = capsys.readouterr().err
    # Those of the oldest protocols begin as anything may, and are read by their ending.
    assert "never executed" in said or (kind[-1] in "01" and "no safetensors" in said)
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_an_honest_file_takes_each_of_these_ways(place: Path) -> None:
    state = build_network(TINY, seed=0).state_dict()
    safe = safetensors.torch.save(state)
    for number, enter in enumerate((as_file, as_hub_folder, as_run)):
        data = safe if enter is as_run else saved({"state_dict": state}, "torch 2")
        assert main(["export", enter(data), "--to", "safetensors", "--out", f"out{number}"]) == 0


@pytest.mark.parametrize("write", FILES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["torch 2", "torch old 2"])
def test_every_published_format_refuses_it(
    place: Path, state50: Any, write: Any, kind: str
) -> None:
    honest = saved(write(makers.copy_of(state50)), "torch 2")
    path = Path("release.pth.tar")
    path.write_bytes(honest)
    assert take_backbone(path).release is not None
    harm = {**write(makers.copy_of(state50)), "hyper_parameters": Bomb(place)}
    path.write_bytes(saved(harm, kind))
    refused(path)


@pytest.mark.parametrize("name", VITS)
def test_every_published_vit_refuses_it(place: Path, name: str) -> None:
    path = Path("vit.pth")
    content = VITS[name](small_vit(depth=1).state_dict())
    path.write_bytes(saved({**content, "hyper_parameters": Bomb(place)}, "torch 2"))
    refused(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_byols_pickle_refuses_it(place: Path, state50: Any, protocol: int) -> None:
    path = Path("byol.pkl")
    makers.byol_pickle(path, thin(state50), thin(state50), protocol)
    assert take_backbone(path).release is not None
    makers.byol_pickle(path, thin(state50), thin(state50), protocol, optimizer=Bomb(place))
    refused(path)


@pytest.mark.parametrize("function", [eval, exec, open, __import__], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_it_may_name_other_code_too(place: Path, kind: str, function: Any) -> None:
    path = Path("net.pkl")
    path.write_bytes(saved({"a": Bomb(place, function)}, kind))
    refused(path, "never executed|Invalid magic number" if kind[-1] in "01" else "never executed")


@pytest.mark.parametrize("kind", ["torch 2", "torch old 2", "pickle 4"])
def test_a_checkpoint_of_pretraining_refuses_it(place: Path, kind: str) -> None:
    path = Path("checkpoint.pt")
    path.write_bytes(saved({"format": 1, "model": Bomb(place)}, kind))
    with pytest.raises(UserError, match="cannot be read as a checkpoint") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_check_refuses_it_and_export_wrote_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("net.pth", "net.pkl", "net.index"):
        Path(name).write_bytes(saved({"a": Bomb(place)}, "pickle 2"))
        assert main(["check", name]) == 2
        said = capsys.readouterr().err
        assert name in said
        assert "posix.mkdir" in said
        assert said.count("\n") == 1


def refused(path: Path, said: str = "never executed") -> None:
    with pytest.raises(UserError, match=said) as caught:
        take_backbone(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    # What it would advise must be safe too.
    assert "weights_only" not in str(caught.value)
