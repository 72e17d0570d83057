"""The contract of an evaluation protocol: a backbone and a data set in, a score out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from transferbench.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np

    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Card, Dataset


class Parameters(BaseModel):
    """Base of every protocol's parameters: typed, with defaults, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def suit(self, card: Card) -> bool:
        """Return whether a data set that the protocol applies to is large enough for these."""
        return True


@dataclass(frozen=True)
class Outcome:
    """What a protocol reports.

    Attributes
    ----------
    metric : str
        Name of the metric, e.g. "top1".
    value, standard_error : float
        In the metric's own unit (shares in 0..1), and its bootstrap error over test images.
    n : int
        Number of test images.
    details : mapping
        What the protocol wants to tell, JSON values only.
    predictions : array (n, ...) or None
        Per-image test predictions.
    cost : mapping
        Seconds per phase, and the like.
    """

    metric: str
    value: float
    standard_error: float
    n: int
    details: Mapping[str, Any] = field(default_factory=dict)
    predictions: np.ndarray[Any, Any] | None = None
    cost: Mapping[str, float] = field(default_factory=dict)


class EvaluationProtocol(Protocol):
    """A protocol. Its module must import without torch and scikit-learn: jobs are told apart first.

    Attributes
    ----------
    name : str
        Registered name.
    version : int
        Raised whenever the same inputs would give another number.
    Parameters : type
        Subclass of `Parameters`.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    Parameters: ClassVar[type[Parameters]]

    def applies_to(self, card: Card) -> bool:
        """Return whether the protocol is defined for a data set."""
        ...

    def run(
        self,
        backbone: Backbone,
        dataset: Dataset,
        parameters: Any,
        *,
        seed: int,
        device: str,
        progress: Progress = SILENT,
    ) -> Outcome:
        """Evaluate; the test split is read once, after all choices are made on validation."""
        ...
