"""Exponential moving averages of networks: targets, momentum encoders, teachers."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """Copy a module with all its state; no parameter of the copy is trained."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_ema(target: nn.Module, online: nn.Module, decay: float) -> None:
    """Set each parameter of `target` to decay * target + (1 - decay) * online, in their order.

    Batch-norm running statistics are not averaged: a target network runs its own batch norm in
    training mode and keeps its own.
    """
    pairs = zip(target.parameters(), online.parameters(), strict=True)
    for mine, theirs in pairs:
        mine.mul_(decay).add_(theirs, alpha=1 - decay)
