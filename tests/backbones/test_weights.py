"""Weights files: containers and prefixes that are understood, and all that is refused."""

import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from transferbench.backbones.build import build_network
from transferbench.backbones.reference import parse_reference
from transferbench.backbones.settings import NetworkSettings
from transferbench.errors import UserError

SETTINGS = NetworkSettings(name="resnet10t", args={"channels": [8, 8, 16, 16]})


def load(path: Path) -> torch.nn.Module:
    text = f'file:{path}@resnet10t?size=32&args={{"channels":[8,8,16,16]}}'
    return parse_reference(text, seed=0).load("cpu").module


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return build_network(SETTINGS, seed=7).state_dict()


def same(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("container", [None, "state_dict", "model", "backbone"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder."])
def test_usual_containers_and_prefixes_are_understood(tmp_path, state, container, prefix):
    path = tmp_path / "net.pth"
    named = {prefix + key: value for key, value in state.items()}
    torch.save({container: named, "epoch": 3} if container else named, path)
    assert same(load(path), state)


def test_the_architectures_own_classifier_is_dropped_and_counters_may_be_absent(tmp_path, state):
    path = tmp_path / "net.safetensors"
    found = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    found |= {"fc.weight": torch.zeros(3, 16), "fc.bias": torch.zeros(3)}
    safetensors.torch.save_file(found, path)
    assert same(load(path), state)


def test_half_precision_is_widened(tmp_path, state):
    path = tmp_path / "net.pt"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    module = load(path)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_code_in_a_pickle_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for name in ("bomb.pth", "bomb.bin"):
        path = tmp_path / name
        torch.save({"state_dict": {"conv1.weight": Bomb()}}, path)
        message = refusal(path)
        assert "never executed" in message
        assert "weights_only" not in message
    path = tmp_path / "plain.pt"
    import pickle

    path.write_bytes(pickle.dumps(Bomb()))
    assert "never executed" in refusal(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, state, ending, kept):
    path = tmp_path / f"net.{ending}"
    if ending == "pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    message = refusal(path)
    assert "truncated" in message or "damaged" in message


def test_other_shapes_are_named_and_counted(tmp_path):
    path = tmp_path / "net.safetensors"
    wide = NetworkSettings(name="resnet10t", args={"channels": [8, 8, 16, 24]})
    safetensors.torch.save_file(build_network(wide, seed=0).state_dict(), path)
    message = refusal(path)
    assert "layer4.0.conv1.weight (24, 16, 3, 3) instead of (16, 16, 3, 3)" in message
    assert "shapes differ" in message


def test_missing_and_left_over_names_are_named_and_counted(tmp_path, state):
    path = tmp_path / "net.safetensors"
    total = len(state)
    del state["bn1.weight"]
    state["projector.0.weight"] = torch.zeros(4, 4)
    safetensors.torch.save_file(state, path)
    message = refusal(path)
    assert f"1 of {total} names are missing (bn1.weight)" in message
    assert "1 are not the network's (projector.0.weight)" in message


def test_another_branch_beside_the_encoder_is_not_guessed_away(tmp_path, state):
    path = tmp_path / "net.pth"
    both = {f"encoder.{k}": v for k, v in state.items()}
    both |= {f"teacher.{k}": v for k, v in state.items()}
    torch.save(both, path)
    assert f"{len(state)} are not the network's (teacher.conv1" in refusal(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {"a": 1}}, torch.zeros(3)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "net.pth"
    torch.save(content, path)
    assert "holds no state dict" in refusal(path)


def test_an_unknown_ending_is_refused(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"x")
    assert "ends in none of .safetensors, .pth" in refusal(path)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("old", [True, False])
def test_no_damage_to_a_file_shows_a_trace(tmp_path, state, old, place):
    path = tmp_path / "net.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    for kept in (int(place * len(whole)), len(whole) - 3):
        path.write_bytes(whole[:kept])
        assert "damaged" in refusal(path)


def test_whatever_the_reader_raises_is_one_line(tmp_path, state, monkeypatch):
    path = tmp_path / "net.pth"
    torch.save(state, path)
    for error in (struct.error("unpack requires\n8 bytes"), AssertionError()):

        def broken(*_, error=error, **__):
            raise error

        monkeypatch.setattr(torch, "load", broken)
        assert "truncated or damaged" in refusal(path)


def test_a_ckpt_is_read_as_a_pth(tmp_path, state):
    path = tmp_path / "net.ckpt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    assert same(load(path), state)
