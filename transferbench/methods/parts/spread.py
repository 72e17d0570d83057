"""Whether outputs tell images apart: the sign of collapse that arXiv 2011.10566 watches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from transferbench.methods.parts.precision import at_least_float32


@at_least_float32
def output_std(z: Tensor) -> Tensor:
    """Return the standard deviation of unit outputs (B, ..., D) over the batch, their mean.

    About 1 / sqrt(D) when healthy, 0 when all images get one output (arXiv 2011.10566 fig. 2).
    """
    return F.normalize(z, dim=-1).std(0, correction=0).mean()


def output_spread(z: Tensor) -> Tensor:
    """Return `output_std` times sqrt(D) of outputs (B, ..., D): 1 if they fill the sphere evenly.

    Methods without negatives log it under this name, for the engine to warn when it vanishes.
    """
    spread: Tensor = output_std(z.detach()) * float(z.shape[-1] ** 0.5)
    return spread
