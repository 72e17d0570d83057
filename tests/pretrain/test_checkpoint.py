"""Checkpoints hold everything, and never run what they hold."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from transferbench.errors import UserError
from transferbench.pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def make(**changes: object) -> Checkpoint:
    values: dict[str, object] = {
        "recipe": "a" * 64,
        "data": "b" * 64,
        "step": 7,
        "seconds": 1.5,
        "method": {"weight": torch.arange(3.0), "count": torch.tensor(4)},
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": 1}],
        },
        "random": {"torch": torch.get_rng_state()},
        "monitors": {"means": {"steps": 1, "sums": {}, "counts": {}}, "warned": ["rankme"]},
    }
    return Checkpoint(**{**values, **changes})  # type: ignore[arg-type]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    saved = make()
    save_checkpoint(saved, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.method["weight"], torch.arange(3.0))
    assert torch.equal(loaded.random["torch"], saved.random["torch"])
    assert (loaded.step, loaded.seconds, loaded.monitors) == (7, 1.5, saved.monitors)
    assert loaded.optimizer["param_groups"] == [{"lr": 1}]


def test_memory_layout_survives(tmp_path: Path) -> None:
    """Sums over channels-last weights run in another order than over contiguous ones."""
    weight = torch.randn(8, 3, 3, 3).to(memory_format=torch.channels_last)
    save_checkpoint(make(method={"weight": weight}), tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt").method["weight"].stride() == weight.stride()


class Evil:
    def __reduce__(self) -> object:
        return os.mkdir, (str(os.environ["EVIL_FOLDER"]),)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"format": 1})])
def test_other_files_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"c.pt cannot be read as a checkpoint .* --restart"):
        load_checkpoint(tmp_path / "c.pt")


def test_another_format_is_one_line(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt")
    torch.save({"format": 1, "step": 3}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "made"))
    torch.save({"format": 1, "method": Evil()}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "made").exists()


def test_finite_looks_at_every_floating_tensor() -> None:
    assert make().finite()
    assert not make(method={"a": torch.zeros(2), "b": torch.tensor([1.0, float("nan")])}).finite()
    assert not make(method={"b": torch.tensor([1.0, float("inf")])}).finite()
