"""BYOL's padding: right by default, the paper's where a protocol repeats the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import transferbench
from tests.backbones import makers
from transferbench.backbones import reference
from transferbench.cli import main

SMALL = '@resnet50@32?args={"layers":[1,1,1,1],"channels":[4,4,8,8]}'

BOARD = """
title = "Small"
datasets = ["digits"]

[[models]]
name = "byol"
reference = '{}'

[[protocols]]
name = "fewshot"
parameters = {{ episodes = 5 }}

[[protocols]]
name = "fewshot-paper"
parameters = {{ episodes = 5 }}
"""


@pytest.fixture
def byol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(
            "resnet50", num_classes=0, layers=[1, 1, 1, 1], channels=[4, 4, 8, 8]
        )
    state = network.state_dict()
    makers.byol_pickle(tmp_path / "byol.pkl", state, state)
    return f"file:byol.pkl{SMALL}"


def test_a_board_records_each_protocols_padding(
    byol: str, fresh_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("leaderboards/small")
    folder.mkdir(parents=True)
    (folder / "board.toml").write_text(BOARD.format(byol))
    line = ["evaluate", "--all", "--board", "small", "--json"]
    assert main(line) == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert len({job["model"] for job in jobs}) == 1
    records = {job["protocol"]: json.loads(Path(job["record"]).read_text()) for job in jobs}
    identities = {name: found["job"]["model"]["identity"] for name, found in records.items()}
    assert identities["fewshot"]["network"]["padding"] == "same"
    assert "padding" not in identities["fewshot-paper"]["network"]
    digests = {name: identity["digest"] for name, identity in identities.items()}
    assert digests["fewshot"] != digests["fewshot-paper"]
    # Each number is that of the network its record names.
    assert records["fewshot"]["details"]["backbone"]["padding"] == "same"
    assert records["fewshot-paper"]["details"]["backbone"]["padding"] == "standard"
    assert main(line) == 0
    assert {job["state"] for job in json.loads(capsys.readouterr().out)["jobs"]} == {"fresh"}


@pytest.mark.parametrize(
    ("said", "expected"), [("", "standard"), ("&padding=same", "same"), (None, "same")]
)
def test_what_is_said_goes_before(
    byol: str, monkeypatch: pytest.MonkeyPatch, said: str | None, expected: str
) -> None:
    seen: list[str] = []
    real = reference.make_backbone

    def make(*arguments: Any) -> Any:
        seen.append(arguments[2].padding)
        return real(*arguments)

    monkeypatch.setattr(reference, "make_backbone", make)
    given = {"k": 5} if said is None else {"mode": "paper", "episodes": 2}
    protocol = "knn" if said is None else "fewshot"
    transferbench.evaluate(f"{byol}{said or ''}", "digits", protocol=protocol, parameters=given)
    assert seen == [expected]
