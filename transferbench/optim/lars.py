"""Layer-wise adaptive rates: LARS and LARC, in the forms that the methods' codes use.

timm's Lars adds the two norms and adds a constant to the denominator, so it equals none of the
forms with the norm of the sum; torch has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose every tensor has a rate in proportion to its norm.

    For a tensor w with gradient g, `norms` says what the trust ratio is::

        "joint"      d = g + wd * w;  d *= eta * |w| / |d|
                     (factor 1 where either norm is 0)
        "separate"   d = (g + wd * w) * eta * |w| / (|g| + wd * |w| + eps)
                     (d = g, without decay, where |w| or |g| is 0)

    and `lr_inside` how momentum and rate combine::

        False        v = momentum * v + d;       w -= lr * v
        True         v = momentum * v + lr * d;  w -= v

    Parameters
    ----------
    params : iterable
        Parameters or groups. A group with `adapt` False is plain SGD: d = g + wd * w.
    lr, momentum, weight_decay : float
        As in SGD.
    eta : float
        Trust coefficient.
    norms : {"joint", "separate"}
        "joint": SimCLR, BYOL, MoCo v3, Barlow Twins. "separate": apex's LARC (SwAV), solo-learn,
        TWIST.
    lr_inside : bool
        SimCLR and TWIST: True. The forms differ only while the rate changes.
    clip : bool
        With "separate": the trust ratio is at most lr, so that no step is larger than SGD's
        (solo-learn's recipes).
    eps : float
        In the denominator of "separate".

    Notes
    -----
    arXiv 1708.03888; google-research/simclr: lars_optimizer.py; NVIDIA/apex: apex/parallel/LARC.py;
    vturrisi/solo-learn: solo/utils/lars.py.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        norms: Literal["joint", "separate"] = "joint",
        lr_inside: bool = False,
        clip: bool = False,
        eps: float = 1e-8,
        adapt: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eta": eta,
            "norms": norms,
            "lr_inside": lr_inside,
            "clip": clip,
            "eps": eps,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

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
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(group, weights, [p.grad for p in weights])
        return loss

    def _update(self, group: dict[str, Any], weights: list[Tensor], grads: list[Tensor]) -> None:
        lr: float = group["lr"]
        if group["adapt"]:
            directions = _adapted(group, weights, grads)
        elif group["weight_decay"]:
            directions = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
        else:
            directions = [grad.clone() for grad in grads]
        if group["lr_inside"]:
            torch._foreach_mul_(directions, lr)
        if group["momentum"]:
            directions = self._with_momentum(group["momentum"], weights, directions)
        torch._foreach_add_(weights, directions, alpha=-1.0 if group["lr_inside"] else -lr)

    def _with_momentum(
        self, momentum: float, weights: list[Tensor], directions: list[Tensor]
    ) -> list[Tensor]:
        """Fold directions into the buffers; a parameter's first buffer is its first direction."""
        buffers = []
        for weight, direction in zip(weights, directions, strict=True):
            state = self.state[weight]
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(momentum).add_(direction)
            else:
                state["momentum_buffer"] = direction
            buffers.append(state["momentum_buffer"])
        return buffers


def _adapted(group: dict[str, Any], weights: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """Return gradient plus decay times trust ratio, one tensor a weight."""
    decay: float = group["weight_decay"]
    decayed = list(torch._foreach_add(grads, weights, alpha=decay))
    weight_norms = torch.stack(torch._foreach_norm(weights))
    if group["norms"] == "joint":
        norms = torch.stack(torch._foreach_norm(decayed))
        ratios = group["eta"] * weight_norms / norms
        usable = (weight_norms > 0) & (norms > 0)
        # The norms stay on the device: reading them would make every step wait.
        torch._foreach_mul_(decayed, list(torch.where(usable, ratios, 1.0).unbind()))
        return decayed
    grad_norms = torch.stack(torch._foreach_norm(grads))
    ratios = group["eta"] * weight_norms / (grad_norms + decay * weight_norms + group["eps"])
    if group["clip"]:
        # A step of rate 0 moves nothing, whatever the ratio.
        ratios = (ratios / group["lr"]).clamp(max=1.0) if group["lr"] > 0 else ratios.clamp(max=1.0)
    usable = (weight_norms > 0) & (grad_norms > 0)
    torch._foreach_mul_(decayed, list(ratios.unbind()))
    return [
        torch.where(use, direction, grad)
        for use, direction, grad in zip(usable, decayed, grads, strict=True)
    ]
