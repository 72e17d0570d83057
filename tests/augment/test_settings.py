"""What a recipe may say about views, and what it is told when it may not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from transferbench.augment.settings import NORMALIZATIONS, Normalization, ViewSettings


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({}, "size"),
        ({"size": 32, "colour": 1}, "colour"),
        ({"size": 32, "flip": 1.5}, "less than or equal to 1"),
        ({"size": 32, "count": 0}, "greater than or equal to 1"),
        ({"size": 32, "crop": {"scale": [0.5, 0.2]}}, "scale must be \\[smallest, largest\\]"),
        ({"size": 32, "crop": {"scale": [0.0, 1.0]}}, "share of the image's area"),
        ({"size": 32, "crop": {"scale": [0.5, 1.1]}}, "share of the image's area"),
        ({"size": 32, "crop": {"ratio": [0, 1]}}, "ratio must be positive"),
        ({"size": 32, "crop": {"interpolation": "lanczos"}}, "bilinear"),
        ({"size": 32, "crop": {}, "pad_crop": {}}, "not both"),
        ({"size": 32, "jitter": {"hue": 0.6}}, "less than or equal to 0.5"),
        ({"size": 32, "jitter": {"brightness": -1}}, "greater than or equal to 0"),
        ({"size": 32, "jitter": {"brightness": float("nan")}}, "finite"),
        ({"size": 32, "blur": {"sigma": [0, 1]}}, "sigma must be positive"),
        ({"size": 8, "blur": {"size": 17}}, "below twice the view's size"),
        ({"size": 32, "order": ["crop", "flop"]}, "no operation 'flop'"),
        ({"size": 32, "order": ["crop", "flip", "flip"]}, "twice"),
        ({"size": 32, "order": ["flip", "crop"]}, "begin with 'crop'"),
        ({"size": 32, "grayscale": 0.2, "order": ["crop", "flip"]}, "must name 'grayscale'"),
    ],
)
def test_a_wrong_view_is_refused(view: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViewSettings.model_validate(view)


def test_what_is_written_is_read_back() -> None:
    view = ViewSettings.model_validate(
        {
            "size": 32,
            "crop": {},
            "jitter": {"hue": 0.1},
            "blur": {},
            "order": ["crop", "blur", "jitter"],
        }
    )
    assert ViewSettings.model_validate(view.model_dump(exclude_none=True)) == view


def test_a_normalization_has_a_name_or_numbers() -> None:
    assert Normalization.model_validate("imagenet") == Normalization()
    assert Normalization.model_validate("none").mean == NORMALIZATIONS["none"][0]
    for wrong in ("imagnet", {"std": [0, 1, 1]}, {"mean": [0, 0]}):
        with pytest.raises(ValidationError):
            Normalization.model_validate(wrong)


def test_settings_load_without_torch() -> None:
    code = (
        "import sys, transferbench.augment.settings, transferbench.optim.settings, "
        "transferbench.optim.schedules, transferbench.measures.geometry; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
