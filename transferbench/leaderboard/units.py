"""How the values of metrics are shown to people."""

from __future__ import annotations

SHARES = ("top1", "mean_per_class", "map11")
"""Metrics whose values lie in 0..1."""


def shown(metric: str | None) -> float:
    """Return by what a value is multiplied for people: 100, or 1 where it is no share."""
    return 100.0 if metric in SHARES else 1.0
