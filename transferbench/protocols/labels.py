"""The parameter that says how many training images have labels."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from transferbench.protocols.protocol import Parameters


class LabelledParameters(Parameters):
    """Parameters of a protocol that can do with few labels.

    Attributes
    ----------
    labels : int, float or None
        How many of the training images (validation included) have labels: a count of 2 or more,
        e.g. 100, or a share in (0, 1], e.g. 0.01; None for all. Drawn evenly over the classes,
        the fewer among the more (`data.splits.training_split`); the seed decides which.
    """

    labels: int | float | None = None

    @field_validator("labels", mode="before")
    @classmethod
    def _count_or_share(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (number and (value >= 2 if isinstance(value, int) else 0 < value <= 1)):
            return value
        raise ValueError(
            f"write a count of 2 or more, as 100, or a share above 0 up to 1, as 0.01, not {value}"
        )
