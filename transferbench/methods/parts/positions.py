"""Fixed position codes for the tokens of an image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def sincos_positions(
    rows: int,
    columns: int,
    width: int,
    *,
    first: Literal["row", "column"],
    prefix: int = 0,
    temperature: float = 10000.0,
) -> Tensor:
    """Return 2-D sine-cosine codes (prefix + rows * columns, width), float64, row by row.

    Half the channels encode one coordinate, half the other; of each half the first half are
    sin(position * omega_j), the second cos, with omega_j = temperature^(-j / (width / 4)).

    Parameters
    ----------
    rows, columns : int
        Of the grid of tokens.
    width : int
        Channels, a multiple of 4.
    first : {"row", "column"}
        Which coordinate the first half of the channels encodes: the row in MoCo v3
        (facebookresearch/moco-v3: vits.py), the column in MAE (facebookresearch/mae:
        util/pos_embed.py).
    prefix : int
        Zero rows in front, for class and register tokens.
    temperature : float
        The longest wave has about so many times the length of the shortest.
    """
    if width % 4:
        raise ValueError(f"the width must be a multiple of 4, not {width}")
    omega = temperature ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    coordinates = (row, column) if first == "row" else (column, row)
    angles = [coordinate[:, None] * omega for coordinate in coordinates]
    codes = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([codes.new_zeros(prefix, width), codes])
