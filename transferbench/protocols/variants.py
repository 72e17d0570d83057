"""Short names for protocols with other parameters than the default, known to every board.

A board may give any name to any parameters; these are those that many would give.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "linear-paper": ("linear", {"mode": "paper"}),
    "linear-1pct": ("linear", {"labels": 0.01}),
    "linear-10pct": ("linear", {"labels": 0.1}),
    "knn-200": ("knn", {"k": 200}),
    "fewshot-20": ("fewshot", {"shots": 20}),
    "fewshot-50": ("fewshot", {"shots": 50}),
    "fewshot-paper": ("fewshot", {"mode": "paper"}),
    "finetune-paper": ("finetune", {"augmentation": "paper", "precision": "float32"}),
    "finetune-halving": ("finetune", {"search": "halving"}),
    "finetune-1pct": ("finetune", {"labels": 0.01}),
    "finetune-10pct": ("finetune", {"labels": 0.1}),
}
"""By name: the registered protocol, and its parameters."""


def variant(name: str) -> tuple[str, dict[str, Any]]:
    """Return the registered protocol and the parameters that a name stands for.

    A name that is none of `VARIANTS` stands for the protocol of that name as it is.
    """
    protocol, parameters = VARIANTS.get(name, (name, {}))
    return protocol, dict(parameters)
