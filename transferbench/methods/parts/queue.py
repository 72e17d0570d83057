"""First in, first out: rows of features that outlive their batch."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def push(queue: Tensor, rows: Tensor) -> None:
    """Move the rows of `queue` (Q, D) down by B and put `rows` (B, D) on top, in place.

    The oldest B rows fall out (facebookresearch/swav: main_swav.py). Needs B <= Q.
    """
    count = len(rows)
    if count > len(queue):
        raise ValueError(f"{count} rows do not fit into a queue of {len(queue)}")
    queue[count:] = queue[: len(queue) - count].clone()
    queue[:count] = rows


def is_full(queue: Tensor) -> bool:
    """Tell whether a queue (Q, D) that began as zeros has been filled: its last row is not zero."""
    return bool((queue[-1] != 0).any())
