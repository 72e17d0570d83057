"""Optimizers and schedules as a recipe writes them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(gt=0.0)]
Decay = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

OptimizerName = Literal["sgd", "lars", "larc", "adam", "adamw", "adagrad", "rmsprop"]
ScheduleName = Literal["constant", "step", "cosine", "epoch-cosine", "fractional-cosine", "swav"]

# What each optimizer reads beyond its rate and weight decay, with its default.
OPTIMIZER_KEYS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": False},
    "lars": {"momentum": 0.9, "eta": 0.001, "lr_inside": False},
    "larc": {"momentum": 0.9, "eta": 0.001, "lr_inside": False, "clip": False, "eps": 1e-8},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8},
    "adagrad": {"eps": 1e-10},
    "rmsprop": {"momentum": 0.0, "alpha": 0.99, "eps": 1e-8},
}

# What each schedule reads, with its default.
SCHEDULE_KEYS: dict[str, dict[str, Any]] = {
    "constant": {"warmup_epochs": 0.0},
    "step": {"warmup_epochs": 0.0, "milestones": None, "every": None, "gamma": 0.1},
    "cosine": {"warmup_epochs": 0.0, "floor": 0.0},
    "epoch-cosine": {"floor": 0.0},
    "fractional-cosine": {"warmup_epochs": 0.0, "floor": 0.0},
    "swav": {"warmup_epochs": 0.0, "warmup_start": 0.0, "floor": 0.0},
}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _complete(value: Any, what: str, keys: dict[str, dict[str, Any]], shared: set[str]) -> Any:
    """Fill in the defaults that the named kind has, and refuse keys of the other kinds."""
    if not isinstance(value, dict) or value.get("name") not in keys:
        return value  # pydantic says what is wrong
    own = keys[value["name"]]
    for key, given in value.items():
        elsewhere = any(key in other for other in keys.values())
        if elsewhere and key not in own and key not in shared and given is not None:
            raise ValueError(
                f"the {what} '{value['name']}' has no key '{key}'; "
                f"its keys: {', '.join(sorted(shared | set(own)))}"
            )
    given_keys = {key: given for key, given in value.items() if given is not None}
    return own | given_keys


class GroupSettings(_Settings):
    """`[[optimizer.group]]`: what differs for one of the method's named groups of parameters.

    Attributes
    ----------
    name : str
        A name that the method's `parameter_groups` gives, e.g. "bias-and-norm".
    lr, base_lr : float or None
        Own rate instead of the optimizer's: for the batch as it is, or scaled with the batch.
    fixed_lr : bool
        Keep the rate constant instead of following the schedule (SimSiam's predictor).
    weight_decay : float or None
        Own weight decay; None takes the optimizer's.
    adapt : bool
        For LARS and LARC: whether the trust ratio applies to this group.
    """

    name: str
    lr: Rate | None = None
    base_lr: Rate | None = None
    fixed_lr: bool = False
    weight_decay: Decay | None = None
    adapt: bool = True

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.lr is not None and self.base_lr is not None:
            raise ValueError(f"group '{self.name}': give 'lr' or 'base_lr', not both")
        return self


class OptimizerSettings(_Settings):
    """`[optimizer]`: which optimizer, with what rate.

    Attributes
    ----------
    name : str
        "sgd", "adam", "adamw", "adagrad", "rmsprop" are torch's. "lars" takes the norm of
        gradient plus decay (SimCLR, BYOL, MoCo v3); "larc" adds the two norms (SwAV; with `clip`
        solo-learn's LARS).
    lr, base_lr : float or None
        Exactly one. `lr` is for the recipe's batch size; `base_lr` is scaled by `lr_scaling`.
    lr_scaling : {"linear", "sqrt"}
        base_lr * batch_size / 256, or base_lr * sqrt(batch_size).
    weight_decay : float
        Added to the gradient; "adamw" decays the weights directly.
    momentum, nesterov, betas, eps, alpha
        As in torch.optim.
    eta : float
        Trust coefficient of LARS and LARC.
    lr_inside : bool
        LARS and LARC: multiply by the rate before the momentum buffer instead of after it. Equal
        while the rate is constant.
    clip : bool
        LARC: never a larger step than plain SGD's.
    group : tuple of GroupSettings
        Exceptions for named groups of parameters.
    """

    name: OptimizerName
    lr: Rate | None = None
    base_lr: Rate | None = None
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    weight_decay: Decay = 0.0
    momentum: Share | None = None
    nesterov: bool | None = None
    betas: tuple[Share, Share] | None = None
    eps: Annotated[float, Field(ge=0.0)] | None = None
    alpha: Share | None = None
    eta: Rate | None = None
    lr_inside: bool | None = None
    clip: bool | None = None
    group: tuple[GroupSettings, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        shared = {"name", "lr", "base_lr", "lr_scaling", "weight_decay", "group"}
        return _complete(value, "optimizer", OPTIMIZER_KEYS, shared)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.lr is None) == (self.base_lr is None):
            raise ValueError("give exactly one of 'lr' (as is) and 'base_lr' (per 256 images)")
        if self.nesterov and not self.momentum:
            raise ValueError("'nesterov' needs a momentum above 0")
        names = [group.name for group in self.group]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the group '{name}' is given twice")
        for group in self.group:
            if not group.adapt and self.name not in ("lars", "larc"):
                raise ValueError(
                    f"group '{group.name}': 'adapt' belongs to lars and larc, "
                    f"'{self.name}' has no trust ratio"
                )
        return self


class ScheduleSettings(_Settings):
    """`[schedule]`: how the learning rate moves. The rules are in `optim.schedules`.

    Attributes
    ----------
    name : str
        "constant"; "step" (times `gamma` at epochs); "cosine" (each step, as SimCLR counts
        them); "epoch-cosine" (constant inside an epoch); "fractional-cosine" (each step, by the
        epoch with its fraction); "swav" (its table of iterations).
    warmup_epochs : float
        Linear rise over the first epochs; from 0, or for "swav" from `warmup_start`.
    warmup_start : float
        Where the rise begins, as a share of the peak.
    floor : float
        Where a cosine ends, as a share of the peak.
    milestones, every : tuple of int, int
        "step": the epochs (from 0) at which the rate drops, or the distance between drops.
    gamma : float
        "step": the factor of each drop.
    """

    name: ScheduleName = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0.0)] | None = None
    warmup_start: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    floor: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    milestones: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    every: Annotated[int, Field(gt=0)] | None = None
    gamma: Annotated[float, Field(gt=0.0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = {"name": "cosine"} | value
        return _complete(value, "schedule", SCHEDULE_KEYS, {"name"})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "step" and (self.milestones is None) == (self.every is None):
            raise ValueError("the schedule 'step' needs one of 'milestones' and 'every'")
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must ascend")
        return self
