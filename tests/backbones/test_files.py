"""Weights files as anyone may hand them over: hostile, torn, or something else altogether."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backbones import makers
from tests.backbones.makers import Bomb
from transferbench.backbones.files import read_content
from transferbench.backbones.pickles import Named, read_pickle
from transferbench.errors import UserError


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_content(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


class Printer:
    def __reduce__(self):
        return eval, ("open('executed', 'w')",)


def saved(content, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


WRITERS = {
    "torch": lambda content: saved(content, zipped=True),
    "torch before 1.6": lambda content: saved(content, zipped=False),
    **{f"pickle {p}": lambda content, p=p: pickle.dumps(content, protocol=p) for p in range(2, 6)},
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("make", ["os.mkdir", "eval", "beside"])
def test_no_reader_executes_what_a_file_names(tmp_path, monkeypatch, kind, make):
    monkeypatch.chdir(tmp_path)
    bomb = Printer() if make == "eval" else Bomb(tmp_path / "executed")
    path = tmp_path / "weights.pth"
    content = {"state_dict": {"conv1.weight": bomb}}
    if make == "beside":
        # A name of a class that does exist, and would be imported, beside an honest tensor.
        content["state_dict"] = {"conv1.weight": np.ones(3, np.float32)}
        content["args"] = Bomb(tmp_path / "executed", Path)
    path.write_bytes(WRITERS[kind](content))
    if make == "beside" and "torch" not in kind:
        assert list(read_content(path).tensors) == ["state_dict/conv1.weight"]
    else:
        message = refusal(path)
        assert "never executed" in message
        assert "weights_only" not in message
    assert not (tmp_path / "executed").exists()


def test_classes_beside_the_weights_become_marks(tmp_path):
    path = tmp_path / "weights.pth"
    for zipped in (True, False):
        content = {"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1), "epoch": 3}
        path.write_bytes(saved(content, zipped=zipped))
        found = read_content(path)
        assert list(found.tensors) == ["model/a"]
        assert found.others == {"args": "argparse.Namespace", "epoch": "int"}


def test_a_mark_among_the_weights_is_refused_by_name(tmp_path):
    from transferbench.backbones.weights import take_backbone

    path = tmp_path / "weights.pth"
    state = {"a": torch.ones(2), "b": argparse.Namespace(lr=1)}
    torch.save({"state_dict": state}, path)
    with pytest.raises(UserError, match=r"1 of its 2 entries .*names code \(argparse.Namespace\)"):
        take_backbone(path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_arrays_is_read_as_numpy_would(tmp_path, protocol):
    path = tmp_path / "arrays.pkl"
    content = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "scalar": np.float64(2.5),
        "nested": [{"x": np.ones(1, np.float16)}, (1, 2.5, None, True, b"raw", "text", {1, 2})],
        "long": 2**70,
    }
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_pickle(path)
    for key in ("f", "fortran", "big", "scalar"):
        assert np.array_equal(found[key], content[key]), key
    assert np.array_equal(found["nested"][0]["x"], content["nested"][0]["x"])
    if protocol > 3:
        assert found["nested"][1] == content["nested"][1]
    assert found["long"] == 2**70


def test_an_array_that_jax_wraps_is_unwrapped(tmp_path):
    def rebuild(*_):
        raise AssertionError("called")

    class Device:
        def __init__(self, array):
            self.array = array

        def __reduce__(self):
            function, arguments, state = self.array.__reduce__()
            return rebuild, (function, arguments, state, {})

    path = tmp_path / "jax.pkl"
    with makers.module_with("jax._src.array", _reconstruct_array=rebuild):
        path.write_bytes(pickle.dumps({"w": Device(np.arange(4.0, dtype=np.float32))}, protocol=2))
    assert np.array_equal(read_pickle(path)["w"], np.arange(4.0))


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "objects.pkl"
    path.write_bytes(pickle.dumps({"w": np.array([{}], dtype=object)}))
    assert "hold no plain numbers" in refusal(path)


def test_unknown_classes_keep_their_names_and_arguments(tmp_path):
    path = tmp_path / "named.pkl"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "executed", Path), protocol=2))
    found = read_pickle(path)
    assert isinstance(found, Named)
    assert (found.code, found.arguments) == ("pathlib.Path", (str(tmp_path / "executed"),))


def test_a_file_that_nests_without_end_is_refused(tmp_path):
    path = tmp_path / "deep.pkl"
    loop: dict = {}
    loop["again"] = loop
    path.write_bytes(pickle.dumps(loop))
    assert "too deep" in refusal(path)
    laughs: dict = {"a": np.ones(1)}
    for _ in range(12):
        laughs = {str(i): laughs for i in range(10)}
    path.write_bytes(pickle.dumps(laughs))
    assert "too many" in refusal(path)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("kind", [*WRITERS, "tensorflow"])
def test_a_torn_file_is_one_line(tmp_path, kind, kept):
    path = tmp_path / "weights.bin"
    if kind == "tensorflow":
        path = tmp_path / "model.index"
        shard = tmp_path / "model.data-00000-of-00001"
        path.write_bytes(makers.tensorflow_index({"a/b": np.ones(500, np.float32)}, shard))
        whole = shard.read_bytes()
        shard.write_bytes(whole[: int(kept * len(whole))])
        assert "'a/b' of shape (500,) does not have" in refusal(path)
        return
    array = torch.ones(500) if "torch" in kind else np.ones(500, np.float32)
    whole = WRITERS[kind]({"state_dict": {"a": array}})
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("place", range(9, 190, 20))
def test_no_flipped_byte_of_an_index_shows_a_trace(tmp_path, place):
    path = tmp_path / "model.index"
    shard = tmp_path / "model.data-00000-of-00001"
    arrays = {f"layer{i}/kernel": np.ones((2, 2), np.float32) for i in range(4)}
    whole = bytearray(makers.tensorflow_index(arrays, shard))
    whole[place % (len(whole) - 8)] ^= 0x55
    path.write_bytes(whole)
    with contextlib.suppress(UserError):
        read_content(path)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    return buffer.getvalue()


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>quota exceeded", "a web page that was saved in place"),
        (b"\n <html>", "a web page that was saved in place"),
        (b'{"error": "not found"}', "a JSON text that was saved in place"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n....", "a Keras file"),
        (b"\x93NUMPY....", "one array"),
        (b"\x1f\x8b\x08..", "compressed (gzip); unpack it first"),
        (b"BZh91AY", "compressed (bzip2)"),
        (b"\xfd7zXZ\0..", "compressed (xz)"),
        (b"x" * 257 + b"ustar" + b"x" * 99, "a tar archive"),
        (archive("net/data.pkl", "net/constants.pkl", "net/code/x.py"), "a TorchScript program"),
        (archive("model/saved_model.pb"), "a TensorFlow SavedModel"),
        (archive("readme.txt"), "a zip archive without weights"),
        (npz(), "a file of numpy arrays"),
    ],
)
def test_what_is_no_weights_file_is_told_by_its_bytes(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_format_is_known_by_its_bytes_not_its_name(tmp_path):
    path = tmp_path / "epoch%3D99.weights"
    path.write_bytes(saved({"a": torch.ones(2)}, zipped=True))
    assert list(read_content(path).tensors) == ["a"]


def test_sparse_tensors_are_refused(tmp_path):
    path = tmp_path / "sparse.pth"
    torch.save({"a": torch.eye(3).to_sparse()}, path)
    assert "'a' is a sparse or quantized tensor" in refusal(path)
