"""What a recipe may say about optimizer and schedule, and what it is told when it may not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from transferbench.optim.settings import OptimizerSettings, ScheduleSettings


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"lr": 1.0}, "name"),
        ({"name": "sgdd", "lr": 1.0}, "'sgd', 'lars'"),
        ({"name": "sgd"}, "exactly one of 'lr'"),
        ({"name": "sgd", "lr": 1.0, "base_lr": 1.0}, "exactly one of 'lr'"),
        ({"name": "sgd", "lr": 0.0}, "greater than 0"),
        ({"name": "sgd", "lr": float("inf")}, "finite"),
        ({"name": "sgd", "lr": 1.0, "weight_decay": -1e-4}, "greater than or equal to 0"),
        ({"name": "sgd", "lr": 1.0, "momentum": 1.0}, "less than 1"),
        ({"name": "sgd", "lr": 1.0, "momentum": 0.0, "nesterov": True}, "needs a momentum"),
        ({"name": "sgd", "lr": 1.0, "eta": 0.1}, "'sgd' has no key 'eta'"),
        ({"name": "lars", "lr": 1.0, "clip": True}, "'lars' has no key 'clip'"),
        ({"name": "adamw", "lr": 1.0, "momentum": 0.9}, "'adamw' has no key 'momentum'"),
        ({"name": "sgd", "lr": 1.0, "groups": []}, "groups"),
        ({"name": "sgd", "lr": 1.0, "group": [{"name": "a"}, {"name": "a"}]}, "given twice"),
        ({"name": "sgd", "lr": 1.0, "group": [{"name": "a", "adapt": False}]}, "no trust ratio"),
        ({"name": "lars", "lr": 1, "group": [{"name": "a", "lr": 1, "base_lr": 1}]}, "not both"),
    ],
)
def test_a_wrong_optimizer_is_refused(optimizer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimizerSettings.model_validate(optimizer)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "cosin"}, "'constant', 'step'"),
        ({"warmup_epochs": -1}, "greater than or equal to 0"),
        ({"every": 3}, "'cosine' has no key 'every'"),
        ({"name": "step"}, "one of 'milestones' and 'every'"),
        ({"name": "step", "every": 2, "milestones": [3]}, "one of 'milestones' and 'every'"),
        ({"name": "step", "milestones": [3, 2]}, "ascend"),
        ({"name": "cosine", "floor": 2.0}, "less than or equal to 1"),
    ],
)
def test_a_wrong_schedule_is_refused(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScheduleSettings.model_validate(schedule)


@pytest.mark.parametrize("name", ["sgd", "lars", "larc", "adam", "adamw", "adagrad", "rmsprop"])
def test_defaults_are_written_out_and_read_back(name: str) -> None:
    settings = OptimizerSettings.model_validate({"name": name, "lr": 0.1})
    written = settings.model_dump(exclude_none=True)
    assert OptimizerSettings.model_validate(written) == settings
    assert ("momentum" in written) == (name in ("sgd", "lars", "larc", "rmsprop"))
