"""`transferbench check` on weights files: format, branch, what is left out, what fits."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backbones import makers
from tests.backbones.makers import copy_of, thin
from tests.backbones.test_releases import moco_v2, small_vit
from transferbench.cli import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(path: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["check", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "weights"
    sentences: list[str] = found["sentences"]
    return sentences


def test_a_release_is_told_with_what_is_left_out(state50, capsys):
    torch.save(moco_v2(copy_of(state50)), "moco.pth.tar")
    assert told("moco.pth.tar", capsys) == [
        "moco.pth.tar is of the format of MoCo v2 or PCL v2; code that a file names is never "
        "executed.",
        "Its 'query' network is the backbone: 318 tensors with 23,561,205 numbers.",
        "It has 53 convolutions and 53 batch norms.",
        "The first tensor is conv1.weight [64, 3, 7, 7], the last "
        "layer4.2.bn3.num_batches_tracked [].",
        "Left out, with their numbers of tensors: state_dict/encoder_q.fc (4), "
        "state_dict/encoder_k.conv1 (1), state_dict/encoder_k.bn1 (5), "
        "state_dict/encoder_k.layer1 (60), state_dict/encoder_k.layer2 (78), "
        "state_dict/encoder_k.layer3 (114), state_dict/encoder_k.layer4 (60), "
        "state_dict/encoder_k.fc (4), state_dict/queue (1).",
        "It has other networks, which are taken with ?branch=momentum.",
        "Evaluate it with --model file:moco.pth.tar@resnet50.",
    ]


def test_byols_pickle_and_simclrs_checkpoints_are_files_of_weights_too(state50, capsys):
    makers.byol_pickle(Path("byol.pkl"), thin(state50), thin(state50))
    sentences = told("byol.pkl", capsys)
    assert sentences[0].startswith("byol.pkl is of the format of BYOL")
    assert any("padding=same); the published transfer numbers" in each for each in sentences)
    shard = Path("model.data-00000-of-00001")
    index = makers.tensorflow_index(makers.simclr_variables(thin(state50)), shard)
    Path("model.index").write_bytes(index)
    with zipfile.ZipFile("ResNet50_1x.zip", "w") as file:
        file.write("model.index")
        file.write(shard)
    for name in ("model.index", "ResNet50_1x.zip"):
        sentences = told(name, capsys)
        assert sentences[0].startswith(f"{name} is of the format of SimCLR v1")
        assert "Its images are normalised by mean 0, 0, 0 and std 1, 1, 1." in sentences


def test_a_plain_file_is_told_with_the_architecture_it_looks_like(capsys):
    torch.save(small_vit().state_dict(), "vit.pth")
    assert told("vit.pth", capsys)[-1] == (
        "Evaluate it with --model file:vit.pth@vit_tiny_patch16_224."
    )
    torch.save({"a": torch.from_numpy(np.ones(2))}, "net.torch")
    assert told("net.torch", capsys) == [
        "net.torch holds 1 tensors with 2 numbers; code that a file names is never executed.",
        "The first tensor is a [2], the last a [2].",
        "Evaluate it with --model file:net.torch@ARCH, where ARCH is a timm architecture.",
    ]
