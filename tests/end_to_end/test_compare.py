"""`transferbench compare`: from records and kept predictions to differences with p values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.mini import Shell
from transferbench.measures.significance import holm, mcnemar, paired_bootstrap

BOARD = """
datasets = ["folder:images", "folder:tags", "digits"]

[[models]]
name = "a"
reference = "random:resnet10t@32"

[[models]]
name = "b"
reference = "random:resnet10t@16"

[[models]]
name = "late"
reference = "random:resnet18@16"

[[protocols]]
name = "linear"
parameters = { count = 2, start = -1, stop = 2, resamples = 20 }

[[protocols]]
name = "knn"
parameters = { k = 3, also = [], resamples = 20 }

[[protocols]]
name = "geometry"
"""


@pytest.fixture
def evaluated(shell: Shell, work: Path, fresh_cache: Path) -> Shell:
    folder = Path("leaderboards/two")
    folder.mkdir()
    (folder / "board.toml").write_text(BOARD)
    sets = "--dataset images --dataset tags"
    shell(f"evaluate --board two --model a --model b {sets} --quiet")
    return shell


def record(model: str, dataset: str, protocol: str) -> tuple[Path, dict[str, object]]:
    path = Path(f"leaderboards/two/records/{model}/{dataset}/{protocol}-0.json")
    return path, json.loads(path.read_text())


def test_two_models_are_compared_image_by_image(evaluated: Shell, fresh_cache: Path) -> None:
    found = evaluated.json("compare a b --board two")
    assert (found["board"], found["models"]) == ("two", ["a", "b"])
    pairs = {(p["protocol"], p["dataset"]): p for p in found["comparisons"]}
    assert set(pairs) == {("linear", "images"), ("linear", "tags"), ("knn", "images")}
    left = {(x["protocol"], x["dataset"]): x["reason"] for x in found["left_out"]}
    assert "keeps no predictions" in left["geometry", "images"]
    assert left["knn", "digits"] == "'a' has no fresh number"
    truth = np.repeat([0, 1], 5)
    kept = {}
    for model in ("a", "b"):
        _, told = record(model, "images", "knn")
        kept[model] = np.load(fresh_cache / "predictions" / f"{told['predictions']}.npy")
        assert (kept[model] == truth).mean() == told["value"]
    pair = pairs["knn", "images"]
    right = [kept[model] == truth for model in ("a", "b")]
    assert pair["bootstrap"] == pytest.approx(vars(paired_bootstrap(*right, seed=0)))
    assert pair["mcnemar"] == vars(mcnemar(*right))
    assert pair["p_holm"] == pair["bootstrap"]["p"]
    linear = [pairs["linear", "images"], pairs["linear", "tags"]]
    corrected = holm(np.array([p["bootstrap"]["p"] for p in linear]))
    assert [p["p_holm"] for p in linear] == pytest.approx(corrected)
    tags = linear[1]
    assert tags["metric"] == "map11"
    assert tags["mcnemar"] is None
    assert tags["bootstrap"]["low"] <= tags["bootstrap"]["difference"] <= tags["bootstrap"]["high"]
    assert tags["bootstrap"]["difference"] == pytest.approx(tags["value_a"] - tags["value_b"])
    lines = evaluated("compare a b --board two --protocol knn")
    assert "Holm-corrected over the data sets" in lines
    assert "left out: digits, knn: 'a' has no fresh number" in lines


def test_what_cannot_be_compared_is_told_in_one_line(evaluated: Shell, fresh_cache: Path) -> None:
    def said(line: str) -> str:
        evaluated(f"compare {line} --board two", code=2)
        assert evaluated.err.count("\n") == 1
        return evaluated.err

    assert "unknown model 'c' in the board 'two'" in said("a c")
    assert "'a' stands twice" in said("a a")
    assert "unknown protocol 'lin' in the board 'two'; did you mean 'linear'?" in said(
        "a b --protocol lin"
    )
    assert "unknown data set 'imagez'" in said("a b --dataset imagez")
    assert "unknown seed '3'" in said("a b --seed 3")
    assert "images, knn: 'late' has no fresh number" in said("a late --protocol knn")
    for file in (fresh_cache / "predictions").iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "the predictions of 'a' are not in the cache" in said("a b --protocol knn")
    shutil.rmtree(fresh_cache / "predictions")
    assert "move its record away and evaluate again" in said("a b --protocol linear")
