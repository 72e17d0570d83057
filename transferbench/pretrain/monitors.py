"""What is watched while a run trains: means between log lines, and signs of collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from transferbench.measures.geometry import feature_std, rankme

SPREAD_FLOOR = 0.1
"""Lowest healthy spread: per-dimension std of unit features times the square root of D."""

OUTPUT_SPREAD_FLOOR = 0.4
"""Lowest healthy spread of what the loss compares; at it, two images' mean cosine is 0.84."""

RANK_FLOOR = 3.0
"""Lowest healthy RankMe of the backbone's features."""

USAGE_FLOOR = 0.3
"""Lowest healthy usage entropy, as a share of its largest value: at it, 64 prototypes are used as
if they were 3 or 4. Small batches and the first epochs of a healthy run come down to 0.45."""


class Means:
    """Running means of the loss and of what the method logs, since the last line.

    Values stay on their device until a line is written, so that steps do not wait for it.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Count one step's values; a name may be absent in some steps."""
        self.steps += 1
        for name, value in values.items():
            number = torch.as_tensor(value).detach()
            # The MPS device has no float64.
            number = number.float() if number.device.type == "mps" else number.double()
            self.sums[name] = self.sums[name] + number if name in self.sums else number
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and begin anew."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.steps, self.sums, self.counts = 0, {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        sums = {name: total.cpu() for name, total in self.sums.items()}
        return {"steps": self.steps, "sums": sums, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint."""
        self.steps, self.counts = state["steps"], dict(state["counts"])
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}


def feature_health(features: Tensor) -> dict[str, float]:
    """Measure the features (N, D) of one batch: the first view, as the network trains on it.

    Returns
    -------
    dict
        "spread": mean over dimensions of the standard deviation of unit-length features, times
        sqrt(D): 1 if they fill the sphere evenly, 0 if all are equal (arXiv 2011.10566 sec. 4.1).
        "rankme": effective rank (arXiv 2210.02885), between 1 and the smaller of N and D; left
        out where a batch is too small to tell a low rank from few images.
    """
    values = features.cpu().double().numpy()
    spread = feature_std(values) * math.sqrt(values.shape[1])
    if len(values) < 10 * RANK_FLOOR:
        return {"spread": spread}
    return {"spread": spread, "rankme": rankme(values)}


def signs_of_collapse(method: str, health: Mapping[str, float]) -> dict[str, str]:
    """Name what looks like collapse, with its likely cause.

    Parameters
    ----------
    method : str
        Named in the warning.
    health : mapping
        "spread" and "rankme" of `feature_health`, and means of what the method logged: a name
        that ends in "usage_entropy" is a share of its largest value, and not logged while
        prototypes are frozen; "output_spread" is the spread of the projections, which may
        collapse under a backbone that does not.

    Returns
    -------
    dict
        Warnings by the name of the monitor.
    """
    found: dict[str, str] = {}
    spread, rank = health.get("spread", 1.0), health.get("rankme", math.inf)
    if spread < SPREAD_FLOOR:
        found["spread"] = (
            f"{method}: all images get nearly the same features (spread {spread:.3f}, below "
            f"{SPREAD_FLOOR}); likely the loss has a constant solution here (no predictor, no "
            "stop-gradient, a target that follows at once) or the learning rate is too high"
        )
    elif rank < RANK_FLOOR:
        found["rankme"] = (
            f"{method}: the features use about {rank:.1f} dimensions (below {RANK_FLOOR:.0f}); "
            "likely the loss is falling to a constant solution, the learning rate or the weight "
            "decay is too high, or views carry too little in common"
        )
    output = health.get("output_spread", 1.0)
    if output < OUTPUT_SPREAD_FLOOR:
        found["output_spread"] = (
            f"{method}: all images get nearly the same projection (spread {output:.3f}, below "
            f"{OUTPUT_SPREAD_FLOOR}); likely the loss has a constant solution here (no predictor, "
            "no stop-gradient, a target that follows at once) or the learning rate is too high"
        )
    for name, value in health.items():
        if name.endswith("usage_entropy") and value < USAGE_FLOOR:
            found[name] = (
                f"{method}: few prototypes or classes are used ({name} {value:.2f} of its largest "
                f"value, below {USAGE_FLOOR}); likely nothing in the loss spreads the images over "
                "them (a diversity or balancing term), there are too many of them for the batch, "
                "or they moved before the features settled (freeze them longer)"
            )
    return found
