from __future__ import annotations

import math

import pytest
import torch

from transferbench.methods.parts.positions import sincos_positions


def test_the_first_half_encodes_the_coordinate_that_was_asked_for() -> None:
    rows = sincos_positions(2, 3, 8, first="row").view(2, 3, 8)
    columns = sincos_positions(2, 3, 8, first="column").view(2, 3, 8)
    for row in range(2):
        for column in range(3):
            wave = [math.sin(row), math.sin(row / 100), math.cos(row), math.cos(row / 100)]
            assert rows[row, column, :4].tolist() == pytest.approx(wave)
            wave = [math.sin(column), math.sin(column / 100)]
            assert columns[row, column, :2].tolist() == pytest.approx(wave)
    torch.testing.assert_close(rows.roll(4, -1), columns)


def test_prefix_tokens_have_no_position() -> None:
    codes = sincos_positions(2, 2, 4, first="row", prefix=3)
    assert codes.shape == (7, 4)
    assert not codes[:3].any()


def test_the_width_must_hold_two_waves_of_each_coordinate() -> None:
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        sincos_positions(2, 2, 6, first="row")
