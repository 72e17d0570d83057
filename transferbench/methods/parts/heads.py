"""Multilayer perceptrons on top of a backbone: projectors and predictors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

LastNorm = Literal["none", "scale", "plain"]


def mlp(
    sizes: Sequence[int],
    *,
    bias: bool = True,
    last_bias: bool = True,
    norm: bool = True,
    last_norm: LastNorm = "none",
    dropout: float = 0.0,
    weight_std: float | None = None,
) -> nn.Sequential:
    """Build linear layers of the given sizes, (B, sizes[0]) to (B, sizes[-1]).

    Between two linear layers stand batch norm, ReLU and, if asked for, dropout.

    Parameters
    ----------
    sizes : sequence of int
        Width of the input, of every hidden layer, and of the output.
    bias, last_bias : bool
        Whether hidden linear layers, and the last one, have a bias.
    norm : bool
        Batch norm (affine, eps 1e-5) after each hidden linear layer.
    last_norm : {"none", "scale", "plain"}
        Batch norm after the last linear layer: absent, with a scale but no shift, or with neither.
    dropout : float
        Probability of dropping a hidden unit.
    weight_std : float, optional
        Draw all weights from Normal(0, weight_std); default: PyTorch's initialisation.
    """
    layers: list[nn.Module] = []
    last = len(sizes) - 2
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        linear = nn.Linear(inputs, outputs, bias=last_bias if i == last else bias)
        if weight_std is not None:
            nn.init.normal_(linear.weight, std=weight_std)
        layers.append(linear)
        if i < last:
            if norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers.append(nn.ReLU(inplace=True))
            if dropout:
                layers.append(nn.Dropout(dropout))
    if last_norm != "none":
        final = nn.BatchNorm1d(sizes[-1], affine=last_norm != "plain")
        if last_norm == "scale":
            # A shift that is not trained stays 0: every kernel takes a full affine norm.
            final.bias.requires_grad_(False)
        layers.append(final)
    return nn.Sequential(*layers)
