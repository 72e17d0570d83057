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
        ({"name": "sgd", "lr": 1.0, "lr_scaling": "linear"}, "'lr_scaling' scales 'base_lr'"),
        ({"name": "adam-then-sgd", "lr": 1.0, "sgd_factor": 9.0}, "needs 'switch_epoch' and"),
        ({"name": "adam-then-sgd", "lr": 1.0, "switch_epoch": 1}, "and 'sgd_factor'"),
        ({"name": "adam", "lr": 1.0, "switch_epoch": 1}, "'adam' has no key 'switch_epoch'"),
    ],
)
def test_a_wrong_optimizer_is_refused(optimizer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimizerSettings.model_validate(optimizer)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "cosin"}, "'constant', 'lambda'"),
        ({"warmup_epochs": -1}, "greater than or equal to 0"),
        ({"every": 3}, "'cosine' has no key 'every'"),
        ({"name": "step"}, "one of 'milestones' and 'every'"),
        ({"name": "step", "every": 2, "milestones": [3]}, "one of 'milestones' and 'every'"),
        ({"name": "step", "milestones": [3, 2]}, "ascend"),
        ({"name": "cosine", "floor": 2.0}, "less than or equal to 1"),
        ({"name": "swav", "warmup_start": 0.1}, "needs 'warmup_epochs' above 0"),
        ({"name": "constant", "epochs": 3}, "'constant' has no key 'epochs'"),
        ({"name": "lambda"}, "needs a 'formula'"),
        ({"name": "cosine", "formula": "epoch"}, "'cosine' has no key 'formula'"),
        ({"name": "lambda", "formula": "__import__('os')"}, "no name '__import__'"),
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


def test_scaling_is_linear_unless_told_and_absent_where_nothing_scales() -> None:
    def scaling(**given: Any) -> str | None:
        return OptimizerSettings.model_validate({"name": "sgd"} | given).lr_scaling

    assert scaling(lr=1.0) is None
    assert scaling(base_lr=1.0) == "linear"
    assert scaling(base_lr=1.0, lr_scaling="sqrt") == "sqrt"
    assert scaling(lr=1.0, group=[{"name": "a", "base_lr": 1.0}]) == "linear"


def test_complete_settings_are_read_back_as_they_are() -> None:
    for given in (
        {"name": "sgd", "lr": 1.0},
        {"name": "lars", "base_lr": 1.0, "group": [{"name": "a", "lr": 2.0}]},
        {"name": "adam-then-sgd", "lr": 1.0, "switch_epoch": 2, "sgd_factor": 9.0},
    ):
        settings = OptimizerSettings.model_validate(given)
        assert OptimizerSettings.model_validate(settings.model_dump(exclude_none=True)) == settings
