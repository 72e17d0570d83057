"""The Python interface as a notebook uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import transferbench as tb
from tests.end_to_end.mini import tree
from transferbench.backbones.wrap import wrap_module
from transferbench.cli import main
from transferbench.data.sources import find_source


class Colours(nn.Module):
    """Mean and deviation of each colour, (B, 6); counts in which mode it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.modes: set[bool] = set()
        self.sizes: set[int] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.modes.add(self.training)
        self.sizes.add(images.shape[-1])
        images = images * self.scale.view(1, 3, 1, 1)
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)


KNN3 = {"k": 3, "resamples": 20}


def test_a_run_is_made_and_evaluated(work: Path) -> None:
    run = tb.pretrain(recipe="mini.toml", overrides=["epochs=2"], seed=1, device="cpu")
    assert isinstance(run, tb.Run)
    assert (run.folder, run.state) == (Path("runs/simclr-v1-images-s1"), "finished")
    assert (run.recipe.epochs, run.recipe.seed) == (2, 1)
    written = tree(work)
    score = tb.evaluate(run, "folder:images", "knn", parameters=KNN3)
    assert (score.metric, score.n) == ("top1", 10)
    assert 0 <= score.value <= 1
    same = tb.evaluate(f"run:{run.folder}", "folder:images", "knn", parameters=KNN3)
    assert same.value == score.value
    assert tree(work) == written


def test_any_module_is_a_model(work: Path) -> None:
    module = Colours().train()
    score = tb.evaluate(
        module, "folder:images", protocol="linear", input_size=32,
        parameters={"count": 3, "resamples": 20},
    )  # fmt: skip
    assert score.value == 1.0
    assert (module.modes, module.sizes) == ({False}, {32})
    assert module.training
    backbone = wrap_module(Colours(), input_size=16)
    assert isinstance(backbone, tb.Backbone)
    dataset = find_source("folder:images").load()
    assert tb.evaluate(backbone, dataset, "knn", parameters=KNN3).value == 1.0
    assert not (work / "leaderboards" / "local").exists()


def test_a_module_without_more_is_taken_at_224_with_imagenets_normalisation(work: Path) -> None:
    module = Colours()
    tb.evaluate(module, "folder:images", "knn", parameters=KNN3)
    assert module.sizes == {224}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("random:resnet10t@32", "digitz"), "did you mean 'digits'"),
        (("random:resnet10t@32", "digits", "liner"), "did you mean 'linear'"),
        (("random:resnet10t@32", "folder:tags", "knn"), "does not apply to a multilabel data set"),
        (("random:resnet10t@32", "drawn"), "no test split"),
        ((3, "folder:images"), "not int"),
    ],
)
def test_bad_input_is_a_user_error(work: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(tb.UserError, match=said):
        tb.evaluate(*arguments)
    with pytest.raises(tb.UserError, match="unknown parameter; did you mean 'k'"):
        tb.evaluate("random:resnet10t@32", "folder:images", "knn", parameters={"kk": 1})
    with pytest.raises(tb.UserError, match="are for a module"):
        tb.evaluate("random:resnet10t@32", "folder:images", "knn", input_size=3)
    with pytest.raises(tb.UserError, match="a method or a recipe"):
        tb.pretrain()


def test_results_are_a_frame(work: Path) -> None:
    assert main(["evaluate", "--board", "mini", "--model", "untrained", "--quiet"]) == 0
    frame = tb.results("leaderboards/mini")
    assert len(frame) == 3
    assert set(frame["dataset"]) == {"images", "tags"}
    assert frame["value"].between(0, 1).all()
    broken = Path("leaderboards/mini/records/untrained/images/knn-0.json")
    broken.write_text("{")
    with pytest.warns(UserWarning, match=r"knn-0\.json is no record"):
        assert len(tb.results("leaderboards/mini")) == 2
    with pytest.raises(tb.UserError, match="no folder leaderboards/mine"):
        tb.results("leaderboards/mine")


def test_the_package_imports_nothing_heavy_and_keeps_its_function_beside_its_room() -> None:
    code = (
        "import sys, transferbench as tb\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "tb.Run\n"
        "import transferbench.pretrain.recipe\n"
        "from transferbench.pretrain import PretrainingFailed\n"
        "assert callable(tb.pretrain) and callable(transferbench.pretrain)\n"
        "try:\n    tb.pretrain()\nexcept tb.UserError:\n    print('ok')\n"
        "assert not {'torch'} & set(sys.modules)\n"
        "assert {'pretrain', 'evaluate', 'results'} <= set(dir(tb))\n"
        "try:\n    tb.pretrian\nexcept AttributeError:\n    print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\nok\n"), done.stderr
