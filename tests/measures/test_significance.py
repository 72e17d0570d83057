import numpy as np
import pytest

from transferbench.measures.significance import from_resamples, holm, paired_bootstrap


def test_holm_by_hand() -> None:
    # 0.01 * 4, then 0.02 * 3, then 0.03 * 2, then 0.5; never below the one before.
    assert holm(np.array([0.03, 0.01, 0.5, 0.02])) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])
    assert len(holm(np.array([]))) == 0


def test_shares_are_compared_as_right_and_wrong_are() -> None:
    draw = np.random.RandomState(0)
    a, b = draw.rand(50) < 0.8, draw.rand(50) < 0.6
    found = paired_bootstrap(a, b, seed=1)
    assert found == paired_bootstrap(a.astype(float), b.astype(float), seed=1)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert paired_bootstrap(a / 2, b / 2, seed=1).low == pytest.approx(found.low / 2)


def test_resamples_on_one_side_are_significant() -> None:
    found = from_resamples(0.1, np.linspace(0.05, 0.15, 999))
    assert found.p == pytest.approx(2 / 1000)
    assert from_resamples(0.0, np.linspace(-1, 1, 999)).p == 1.0
