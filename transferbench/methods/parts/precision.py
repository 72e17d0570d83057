"""Losses keep float32 where networks run in half precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def raise_half(value: Tensor) -> Tensor:
    """Return a tensor of any shape in float32 if it is float16 or bfloat16, else as it is."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def at_least_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors: no autocast inside, half-precision arguments in float32.

    Exponentials of scores over a temperature overflow or lose their small differences in half
    precision. float64 stays float64.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"

        def raised(value: object) -> object:
            return raise_half(value) if isinstance(value, Tensor) else value

        with torch.autocast(device, enabled=False):
            return function(
                *(raised(a) for a in args),  # type: ignore[arg-type]
                **{k: raised(v) for k, v in kwargs.items()},  # type: ignore[arg-type]
            )

    return wrapped
