"""Optimizers and schedules as a recipe writes them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from transferbench.optim.formula import parse_formula

Rate = Annotated[float, Field(gt=0.0)]
Decay = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

OptimizerName = Literal[
    "sgd", "lars", "larc", "adam", "adamw", "adagrad", "rmsprop", "adam-then-sgd"
]
ScheduleName = Literal[
    "constant",
    "lambda",
    "step",
    "cosine",
    "epoch-cosine",
    "fractional-cosine",
    "pycontrast",
    "swav",
]

# What each optimizer reads beyond its rate and weight decay, with its default.
OPTIMIZER_KEYS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": False},
    "lars": {"momentum": 0.9, "eta": 0.001, "lr_inside": False},
    "larc": {"momentum": 0.9, "eta": 0.001, "lr_inside": False, "clip": False, "eps": 1e-8},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8},
    "adagrad": {"eps": 1e-10},
    "rmsprop": {"momentum": 0.0, "alpha": 0.99, "eps": 1e-8},
    "adam-then-sgd": {
        "switch_epoch": None,
        "sgd_factor": None,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "momentum": 0.9,
        "nesterov": False,
    },
}

# What each schedule reads, with its default.
SCHEDULE_KEYS: dict[str, dict[str, Any]] = {
    "constant": {"warmup_epochs": 0.0},
    "lambda": {"warmup_epochs": 0.0, "formula": None, "epochs": None},
    "step": {"warmup_epochs": 0.0, "milestones": None, "every": None, "gamma": 0.1},
    "cosine": {"warmup_epochs": 0.0, "floor": 0.0, "epochs": None},
    "epoch-cosine": {"floor": 0.0, "epochs": None},
    "fractional-cosine": {"warmup_epochs": 0.0, "floor": 0.0, "epochs": None},
    "pycontrast": {"warmup_epochs": 0.0, "warmup_start": 0.0, "floor": 0.001, "epochs": None},
    "swav": {"warmup_epochs": 0.0, "warmup_start": 0.0, "floor": 0.0, "epochs": None},
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
        solo-learn's LARS). "adam-then-sgd" is Adam up to `switch_epoch`, SGD from there on.
    lr, base_lr : float or None
        Exactly one. `lr` is for the recipe's batch size; `base_lr` is scaled by `lr_scaling`.
    lr_scaling : {"linear", "sqrt"} or None
        base_lr * batch_size / 256 (the default), or base_lr * sqrt(batch_size).
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
    switch_epoch : int
        "adam-then-sgd": the first epoch, counted from 0, of SGD.
    sgd_factor : float
        "adam-then-sgd": SGD's rate as a multiple of Adam's, at every point of the schedule.
    group : tuple of GroupSettings
        Exceptions for named groups of parameters.
    """

    name: OptimizerName
    lr: Rate | None = None
    base_lr: Rate | None = None
    lr_scaling: Literal["linear", "sqrt"] | None = None
    weight_decay: Decay = 0.0
    momentum: Share | None = None
    nesterov: bool | None = None
    betas: tuple[Share, Share] | None = None
    eps: Annotated[float, Field(ge=0.0)] | None = None
    alpha: Share | None = None
    eta: Rate | None = None
    lr_inside: bool | None = None
    clip: bool | None = None
    switch_epoch: Annotated[int, Field(gt=0)] | None = None
    sgd_factor: Rate | None = None
    group: tuple[GroupSettings, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        shared = {"name", "lr", "base_lr", "lr_scaling", "weight_decay", "group"}
        complete = _complete(value, "optimizer", OPTIMIZER_KEYS, shared)
        if isinstance(complete, dict) and _scales(complete):
            return {"lr_scaling": "linear"} | complete
        return complete

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.lr is None) == (self.base_lr is None):
            raise ValueError("give exactly one of 'lr' (as is) and 'base_lr' (per 256 images)")
        if self.lr_scaling is not None and not _scales(self.model_dump()):
            raise ValueError("'lr_scaling' scales 'base_lr'; 'lr' is taken as it is")
        if self.nesterov and not self.momentum:
            raise ValueError("'nesterov' needs a momentum above 0")
        if self.name == "adam-then-sgd" and None in (self.switch_epoch, self.sgd_factor):
            raise ValueError("'adam-then-sgd' needs 'switch_epoch' and 'sgd_factor'")
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


def _scales(optimizer: dict[str, Any]) -> bool:
    """Tell whether any rate of an `[optimizer]` table is given per 256 images."""
    groups = optimizer.get("group") or ()
    return any(
        isinstance(table, dict) and table.get("base_lr") is not None
        for table in (optimizer, *groups)
    )


class ScheduleSettings(_Settings):
    """`[schedule]`: how the learning rate moves. The rules are in `optim.schedules`.

    Attributes
    ----------
    name : str
        "constant"; "lambda" (times a `formula` in the epoch); "step" (times `gamma` at epochs);
        "cosine" (each step, as SimCLR counts them); "epoch-cosine" (constant inside an epoch);
        "fractional-cosine" (each step, by the epoch with its fraction); "pycontrast" (constant
        inside an epoch, which is counted from 1, so that the last one is at the floor); "swav"
        (its table of iterations).
    warmup_epochs : float
        Linear rise over the first epochs; from 0, or for "swav" and "pycontrast" from
        `warmup_start`.
    warmup_start : float
        Where the rise begins, as a share of the peak.
    floor : float
        Where a cosine ends, as a share of the peak.
    formula : str
        "lambda": the factor of the peak, e.g. "0.95 ** epoch"; see `optim.formula`. `epoch` counts
        from 0 and is constant inside an epoch, `epochs` is the schedule's length.
    epochs : int or None
        Where a cosine ends, and the `epochs` of a formula, if that is before the end of the run or
        of the phase.
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
    formula: str | None = None
    epochs: Annotated[int, Field(gt=0)] | None = None

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
        if self.name == "lambda":
            if self.formula is None:
                raise ValueError("the schedule 'lambda' needs a 'formula', e.g. '0.95 ** epoch'")
            parse_formula(self.formula)
        if self.warmup_start and not self.warmup_epochs:
            raise ValueError("'warmup_start' needs 'warmup_epochs' above 0: there is no rise")
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must ascend")
        return self
