"""A backbone that is loaded when its network is first needed."""

import copy
from pathlib import Path

import pytest
import torch

from transferbench.backbones.late import LateBackbone, load_or_wait
from transferbench.backbones.reference import parse_reference, wrap_module
from transferbench.errors import UserError


class Watched:
    """`random:resnet10t@32`, with a count of how often it was loaded."""

    def __init__(self, seed=0):
        self.reference = parse_reference("random:resnet10t@32", seed=seed)
        self.loads = 0

    def load(self):
        self.loads += 1
        return self.reference.load("cpu")

    def __call__(self, **changes):
        identity = {**self.reference.identity(), **changes}
        return load_or_wait(self.reference.name, identity, self.load, device="cpu")


def test_a_model_that_was_loaded_before_waits_until_it_is_needed(fresh_cache: Path) -> None:
    model = Watched()
    first = model()
    assert model.loads == 1
    late = model()
    assert isinstance(late, LateBackbone)
    for key in (
        "name",
        "digest",
        "notes",
        "input_size",
        "mean",
        "std",
        "interpolation",
        "cacheable",
    ):
        assert getattr(late, key) == getattr(first, key)
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    assert (late.normalize(images) == first.normalize(images)).all()
    assert not hasattr(late, "nothing")
    assert model.loads == 1
    given = late.normalize(images)
    assert (late.module(given) == first.module(given)).all()
    assert late.notes == {"pooling": "avg"}
    assert model.loads == 2
    assert copy.deepcopy(late).digest == first.digest


@pytest.mark.parametrize("content", ["", "[]", '{"pool'])
def test_a_damaged_note_is_written_anew(fresh_cache: Path, content: str) -> None:
    model = Watched()
    model()
    notes = [p for p in (fresh_cache / "models").iterdir() if p.read_text() == '{"pooling":"avg"}']
    for note in notes:
        note.write_text(content)
    model()
    assert len(notes) == 1
    assert model.loads == 2
    assert isinstance(model(), LateBackbone)


def test_other_models_and_devices_are_loaded_at_once(fresh_cache: Path) -> None:
    Watched()()
    other = Watched(seed=1)
    other()
    assert other.loads == 1
    load_or_wait("x", other.reference.identity(), other.load, device="cuda:0")
    assert other.loads == 2
    # What does not say how images come to it could not stand for the network.
    other(preprocessing=None)
    assert other.loads == 3


def test_a_module_that_no_digest_identifies_is_never_taken_as_loaded(fresh_cache: Path) -> None:
    backbone = wrap_module(torch.nn.Flatten(), input_size=4)
    said = {
        "input_size": 4,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "interpolation": backbone.interpolation,
    }
    identity = {"digest": backbone.digest, "preprocessing": said}
    for _ in range(2):
        assert load_or_wait("flat", identity, lambda: backbone, device="cpu") is backbone


def test_a_model_that_changed_meanwhile_is_refused(fresh_cache: Path) -> None:
    model = Watched()
    model()
    late = model()
    model.reference = parse_reference("random:resnet10t@32", seed=5)
    with pytest.raises(UserError, match="changed while the evaluation ran; run again"):
        _ = late.module
