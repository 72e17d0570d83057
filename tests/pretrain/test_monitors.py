"""What is watched, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import transferbench.pretrain.loop as loop
from tests.pretrain.conftest import train
from transferbench.pretrain.log import Log, read_log
from transferbench.pretrain.monitors import Means, feature_health, signs_of_collapse
from transferbench.progress import Progress


def test_means_cover_the_steps_since_the_last_line() -> None:
    means = Means()
    means.add({"loss": torch.tensor(1.0), "rare": 5.0})
    means.add({"loss": torch.tensor(3.0)})
    assert means.take() == {"loss": 2.0, "rare": 5.0}
    means.add({"loss": 7.0})
    assert means.take() == {"loss": 7.0}


def test_means_continue_from_their_state() -> None:
    straight, first, second = Means(), Means(), Means()
    values = [torch.rand(()) for _ in range(4)]
    for value in values:
        straight.add({"loss": value})
    for value in values[:2]:
        first.add({"loss": value})
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    for value in values[2:]:
        second.add({"loss": value})
    assert second.steps == 4
    assert second.take() == straight.take()


def test_health_of_even_and_of_collapsed_features() -> None:
    torch.manual_seed(0)
    even = feature_health(torch.randn(512, 32))
    assert even["spread"] == pytest.approx(1.0, abs=0.02)
    assert even["rankme"] > 28
    assert signs_of_collapse("byol", even) == {}
    point = feature_health(torch.ones(512, 32) + 1e-3 * torch.randn(512, 32))
    assert point["spread"] < 0.01


@pytest.mark.parametrize(
    ("health", "monitor", "said"),
    [
        ({"spread": 0.01, "rankme": 1.1}, "spread", "byol: all images get nearly the same"),
        ({"spread": 0.5, "rankme": 2.0}, "rankme", "byol: the features use about 2.0 dimensions"),
        ({"usage_entropy": 0.2}, "usage_entropy", "byol: few prototypes or classes are used"),
        ({"output_spread": 0.1}, "output_spread", "byol: all images get nearly the same proj"),
    ],
)
def test_collapse_is_named_with_method_and_cause(
    health: dict[str, float], monitor: str, said: str
) -> None:
    found = signs_of_collapse("byol", health)
    assert list(found) == [monitor]
    assert found[monitor].startswith(said)
    assert "likely" in found[monitor]


def test_a_collapsing_run_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "feature_health", lambda _: {"spread": 0.01, "rankme": 1.0})
    monkeypatch.setattr(Progress, "say", lambda self, text: print(text))
    train(tmp_path)
    assert capsys.readouterr().out.count("warning: after epoch 1: swav: all images") == 1
    warnings = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "warning"]
    assert [line["epoch"] for line in warnings if "nearly the same" in line["text"]] == [0]


def test_the_log_drops_what_came_after_the_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"kind": "steps", "step": step, "epoch": 0} for step in (10, 20, 30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st')
    assert read_log(path) == lines
    with Log(path, 20) as log:
        log.write({"kind": "steps", "step": 21, "epoch": 0})
    assert [line["step"] for line in read_log(path)] == [10, 20, 21]
    with Log(path, 0):
        pass
    assert read_log(path) == []
