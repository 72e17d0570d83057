"""Adam first, SGD afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class AdamThenSGD(torch.optim.Adam):
    """Adam up to a switch point, SGD with momentum from there on (arXiv 1712.07628).

    At the switch Adam's moments are dropped; the first buffer of SGD is its first gradient. The
    place in the run is kept in the groups, so that a state dict continues on either side.

    Parameters
    ----------
    params : iterable
        Parameters or groups.
    lr : float
        Adam's rate.
    switch_epoch : int
        The first epoch, counted from 0, of SGD.
    sgd_factor : float
        SGD's rate is `lr` times this.
    betas, eps, weight_decay
        As in torch's Adam; the decay, added to the gradient, is SGD's too.
    momentum, nesterov
        As in torch's SGD.

    Notes
    -----
    `begin_step` must be called before every step: it is what learns how long an epoch is.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        switch_epoch: int,
        sgd_factor: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        own = {
            "switch_epoch": switch_epoch,
            "sgd_factor": sgd_factor,
            "momentum": momentum,
            "nesterov": nesterov,
            "steps_done": 0,
            "switched": False,
        }
        for group in self.param_groups:
            group.update(own)

    def begin_step(self, steps_per_epoch: int) -> float:
        """Switch if it is time; return the factor by which the coming step's rate is multiplied."""
        first = self.param_groups[0]
        due: bool = first["steps_done"] >= first["switch_epoch"] * steps_per_epoch
        if due and not first["switched"]:
            self.state.clear()
        for group in self.param_groups:
            group["switched"] = due
        return float(first["sgd_factor"]) if due else 1.0

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.param_groups[0]["switched"]:
            super().step()
        else:
            for group in self.param_groups:
                self._descend(group)
        for group in self.param_groups:
            group["steps_done"] += 1
        return loss

    def _descend(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        buffers: list[Tensor | None] = [self.state[p].get("momentum_buffer") for p in weights]
        sgd(
            weights,
            [p.grad for p in weights],
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )
        if group["momentum"]:
            for weight, buffer in zip(weights, buffers, strict=True):
                # Adam's loader looks at every parameter's "step".
                self.state[weight] = {"step": torch.zeros(()), "momentum_buffer": buffer}
