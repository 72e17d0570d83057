"""First in, first out: rows of features that outlive their batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, rows: Tensor) -> Tensor:
    """Overwrite the rows `pointer`, `pointer` + 1, ... of a ring `queue` (K, D), in place.

    Indices are taken modulo K (HobbitLong/PyContrast: pycontrast/memory/mem_moco.py).

    Parameters
    ----------
    queue : Tensor (K, D)
    pointer : Tensor () int64
        The oldest row.
    rows : Tensor (B, D)
        At most K.

    Returns
    -------
    Tensor () int64
        The new pointer.
    """
    if len(rows) > len(queue):
        raise ValueError(f"{len(rows)} rows do not fit into a queue of {len(queue)}")
    slots = (pointer + torch.arange(len(rows), device=queue.device)) % len(queue)
    queue[slots] = rows.to(queue.dtype)
    return (pointer + len(rows)) % len(queue)


class KeyQueue(nn.Module):
    """The keys of the last batches, K unit rows, equal on all processes; random at first.

    Parameters
    ----------
    size, width : int
        K and D.

    Attributes
    ----------
    rows : Tensor (K, D)
    pointer : Tensor () int64
        The row that is overwritten next, the oldest.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def replace_oldest(self, keys: Tensor) -> None:
        """Put unit keys (B, D), the same on all processes, in place of the oldest rows."""
        self.pointer.copy_(enqueue(self.rows, self.pointer, keys))


def is_full(queue: Tensor) -> bool:
    """Tell whether a queue (Q, D) that began as zeros has been filled: its last row is not zero."""
    return bool((queue[-1] != 0).any())
