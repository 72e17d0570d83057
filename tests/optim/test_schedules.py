"""Schedules at their borders, and the rates that a run would get."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from transferbench.optim import schedules
from transferbench.optim.schedules import learning_rate
from transferbench.optim.settings import ScheduleSettings


def rates(settings: dict[str, Any], *, base: float = 2.0, epochs: int = 6) -> list[float]:
    """Every step of a run of 5 steps an epoch."""
    schedule = ScheduleSettings.model_validate(settings)
    return [
        learning_rate(schedule, base, step, steps_per_epoch=5, epochs=epochs)
        for step in range(5 * epochs)
    ]


def test_constant_stays_after_its_warmup() -> None:
    found = rates({"name": "constant", "warmup_epochs": 1})
    assert found[:5] == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6])
    assert set(found[5:]) == {2.0}


def test_steps_drop_at_milestones_and_regularly() -> None:
    given = rates({"name": "step", "milestones": [2, 3]})
    assert given == pytest.approx([2.0] * 10 + [0.2] * 5 + [0.02] * 15)
    regular = rates({"name": "step", "every": 4, "gamma": 0.5})
    assert regular == pytest.approx([2.0] * 20 + [1.0] * 10)


def test_the_epoch_cosine_moves_between_epochs_only() -> None:
    found = rates({"name": "epoch-cosine"})
    for epoch in range(6):
        expected = 1 + math.cos(math.pi * epoch / 6)
        assert found[5 * epoch : 5 * epoch + 5] == pytest.approx([expected] * 5)


@pytest.mark.parametrize("name", ["cosine", "fractional-cosine", "swav"])
def test_cosines_rise_then_fall_towards_their_floor(name: str) -> None:
    found = rates({"name": name, "warmup_epochs": 2, "floor": 0.1})
    assert found[0] == 0
    assert found[:10] == sorted(found[:10])
    assert found[10:] == sorted(found[10:], reverse=True)
    assert max(found) == pytest.approx(2.0)
    assert 0.2 < found[-1] < 0.25


@pytest.mark.parametrize("name", ["cosine", "fractional-cosine", "swav", "constant"])
def test_no_warmup_starts_at_the_peak(name: str) -> None:
    assert rates({"name": name})[0] == 2.0


@pytest.mark.parametrize("name", ["cosine", "fractional-cosine", "swav"])
def test_a_warmup_as_long_as_the_run_divides_by_nothing(name: str) -> None:
    found = rates({"name": name, "warmup_epochs": 6})
    assert all(math.isfinite(rate) and 0 <= rate <= 2 for rate in found)


def test_the_simclr_count_goes_across_epochs() -> None:
    # 103 images in batches of 10: 10 whole batches an epoch, but 31 steps in three epochs.
    assert schedules.simclr_steps(103, 10, 3, 1) == (10, 31)
    schedule = ScheduleSettings(name="cosine", warmup_epochs=1)
    last = learning_rate(
        schedule, 1.0, 29, steps_per_epoch=10, epochs=3, num_images=103, batch_size=10
    )
    assert last == pytest.approx(0.5 * (1 + math.cos(math.pi * 19 / 21)))


def test_swav_starts_where_it_is_told_and_uses_its_peak_twice() -> None:
    found = rates({"name": "swav", "warmup_epochs": 1, "warmup_start": 0.5})
    assert found[:6] == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0, 2.0])


def test_rates_scale_with_the_batch() -> None:
    assert schedules.scaled_rate(0.3, 4096) == pytest.approx(4.8)
    assert schedules.scaled_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)


def test_the_momentum_ends_at_one() -> None:
    found = [schedules.cosine_momentum(0.99, step, 10) for step in range(11)]
    assert found[0] == pytest.approx(0.99)
    assert found[-1] == 1.0
    assert found == sorted(found)


def test_a_cosine_may_end_before_the_run() -> None:
    found = rates({"name": "fractional-cosine", "epochs": 3, "floor": 0.1})
    assert found[:15] == rates({"name": "fractional-cosine", "floor": 0.1}, epochs=3)
    assert set(found[15:]) == {0.2}


def test_a_formula_moves_between_epochs_only_and_knows_their_number() -> None:
    found = rates({"name": "lambda", "formula": "0.5 ** epoch"})
    assert found == pytest.approx([2.0 * 0.5 ** (step // 5) for step in range(30)])
    linear = rates({"name": "lambda", "formula": "1 - epoch / epochs", "warmup_epochs": 1})
    assert linear[:5] == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6])
    assert linear[5::5] == pytest.approx([2.0 * (1 - epoch / 6) for epoch in range(1, 6)])


def test_pycontrast_ends_on_its_floor_and_warms_up_to_its_own_curve() -> None:
    found = rates({"name": "pycontrast", "floor": 0.1, "warmup_epochs": 2, "warmup_start": 0.5})
    assert found[0] == 1.0
    assert found[25:] == pytest.approx([0.2] * 5)
    curve = 0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi * 2 / 6))
    assert found[9] == pytest.approx(1.0 + (curve - 1.0) * 9 / 10)


def test_sela_makes_labels_often_at_first() -> None:
    found = schedules.label_times(10, 5)
    assert found[0] == 0.0
    assert found[-1] == pytest.approx(11.01)
    assert sorted(b - a for a, b in pairwise(found)) == [b - a for a, b in pairwise(found)]
    assert schedules.label_times(10, 1) == [0.0]
