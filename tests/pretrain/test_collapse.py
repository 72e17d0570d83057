"""Runs that must collapse trip a warning; the same runs with what holds them up do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.reduce import noise
from tests.pretrain.conftest import NoiseSource, train
from transferbench.pretrain.log import read_log

Changes = dict[str, Any]

HELD_UP: dict[str, Changes] = {
    "byol": {
        "projector_hidden": 64,
        "projector_output": 32,
        "predictor_hidden": 64,
        "tau_base": 0.9,
    },
    "simsiam": {"projector_hidden": 64, "projector_output": 64, "predictor_hidden": 16},
    # The norm of the logits over the batch is left out here: see the last test.
    "twist": {"head_hidden": 64, "classes": 16, "last_norm": False},
}
LET_GO: dict[str, Changes] = {
    "byol": {"predictor_layers": 0},
    "simsiam": {"stop_gradient": False},
    "twist": {"diversity_weight": 0.0},
}
SAID = {
    "byol": "nearly the same projection",
    "simsiam": "nearly the same projection",
    "twist": "few prototypes or classes are used",
}


class Coarse(NoiseSource):
    """Images of coarse noise, which views of one image share."""

    def load(self, **_: Any) -> Any:
        return noise()


def warnings_of(method: str, folder: Path, settings: Changes) -> list[str]:
    train(
        folder,
        Coarse(),
        method=method,
        settings=settings,
        views=[{"count": 2, "size": 16, "crop": {"scale": [0.5, 1.0]}}],
        backbone={
            "name": "resnet18",
            "args": {"layers": [1] * 4, "channels": [8, 8, 16, 32], "stem_width": 8},
        },
        batch_size=32,
        epochs=12,
        optimizer={"name": "sgd", "lr": 0.3, "weight_decay": 1e-4},
    )
    log = read_log(folder / "log.jsonl")
    return [line["text"] for line in log if line["kind"] == "warning"]


@pytest.mark.parametrize("method", list(HELD_UP))
def test_without_what_holds_it_up_a_method_warns_of_its_collapse(
    method: str, tmp_path: Path
) -> None:
    said = warnings_of(method, tmp_path, HELD_UP[method] | LET_GO[method])
    assert any(text.startswith(f"{method}: ") and SAID[method] in text for text in said), said
    assert all("likely" in text for text in said)


@pytest.mark.parametrize("method", list(HELD_UP))
def test_with_it_the_same_run_is_silent(method: str, tmp_path: Path) -> None:
    assert warnings_of(method, tmp_path, HELD_UP[method]) == []


def test_the_last_norm_of_twist_holds_it_up_without_diversity(tmp_path: Path) -> None:
    """With each class's logits at mean 0 over the batch, no class can lead on every image."""
    settings = HELD_UP["twist"] | LET_GO["twist"] | {"last_norm": True}
    assert warnings_of("twist", tmp_path, settings) == []
