"""Label-free measures: what they are made from, and what they say of collapse."""

import numpy as np
import pytest
import torch

from tests.protocols.stubs import make_backbone, make_dataset
from transferbench.errors import UserError
from transferbench.measures.geometry import alignment, feature_std, rankme, uniformity
from transferbench.measures.neighbors import unit_rows
from transferbench.protocols.features import gather
from transferbench.protocols.geometry import Geometry, GeometryParameters, cut_view, jackknife_error
from transferbench.storage import canonical_json

pytestmark = pytest.mark.usefixtures("fresh_cache")


def run(backbone=None, seed=0, dataset=None, **parameters):
    return Geometry().run(
        backbone or make_backbone(),
        dataset or make_dataset(),
        GeometryParameters(**parameters),
        seed=seed,
        device="cpu",
    )


def test_measures_are_those_of_the_features_of_the_test_split():
    log: list[str] = []
    outcome = run(dataset=make_dataset(log))
    assert not any(entry.startswith(("train", "val")) for entry in log)
    features, _ = gather(make_backbone(), make_dataset(), ("test",))
    cuts, _ = gather(make_backbone(), make_dataset(), ("test",), view=cut_view())
    unit = unit_rows(features)
    assert (outcome.metric, outcome.n) == ("rankme", 80)
    assert outcome.value == outcome.details["rankme"] == pytest.approx(rankme(features))
    assert outcome.details["uniformity"] == pytest.approx(uniformity(unit))
    assert outcome.details["alignment"] == pytest.approx(alignment(unit, unit_rows(cuts)))
    assert outcome.details["alignment"] > 0
    assert outcome.details["spread"] == pytest.approx(feature_std(features) * 6**0.5)
    low, *_, high = outcome.details["spread_quartiles"]
    assert low < outcome.details["spread"] < high
    assert outcome.predictions is None
    canonical_json(outcome.details)


def test_equal_calls_give_equal_cuts_and_a_seed_chooses_the_images():
    from dataclasses import replace

    backbone = replace(make_backbone(), cacheable=False)
    first, second, other = run(backbone), run(backbone), run(backbone, seed=1)
    assert first.details == second.details
    assert first.value == pytest.approx(other.value)
    few, fewer = run(backbone, images=40), run(backbone, seed=1, images=40)
    assert few.n == 40
    assert few.value != fewer.value


@pytest.mark.parametrize("shape", [(200, 6), (40, 90)])
def test_the_jackknife_is_that_of_the_definition(shape):
    rows = np.random.RandomState(0).randn(*shape) * np.linspace(0.1, 2, shape[1])
    parts = np.array_split(np.random.RandomState(3).permutation(len(rows)), 10)
    values = [rankme(np.delete(rows, part, axis=0)) for part in parts]
    expected = np.sqrt(0.9 * np.square(np.array(values) - np.mean(values)).sum())
    assert jackknife_error(rows, seed=3) == pytest.approx(expected, rel=1e-3)


def test_collapse_shows():
    class Constant(torch.nn.Module):
        def forward(self, images):
            return torch.ones(len(images), 3)

    outcome = run(make_backbone(Constant()))
    assert outcome.value == pytest.approx(1.0, abs=1e-4)
    assert outcome.details["spread"] == pytest.approx(0)
    assert outcome.details["uniformity"] == pytest.approx(0)
    assert outcome.details["alignment"] == pytest.approx(0)


def test_features_that_are_no_numbers_and_too_few_images_are_refused():
    class Broken(torch.nn.Module):
        def forward(self, images):
            return torch.full((len(images), 3), float("nan"))

    with pytest.raises(UserError, match="not finite numbers for 80 of 80 images of 'colors'"):
        run(make_backbone(Broken()))
    with pytest.raises(UserError, match="has 9 test images, but the geometry of features needs 10"):
        run(dataset=make_dataset(sizes={"train": 20, "test": 9}))
    assert not GeometryParameters().suit(make_dataset(sizes={"train": 20, "test": 9}).card)
    assert GeometryParameters().suit(make_dataset(sizes={"train": 20, "test": 10}).card)
