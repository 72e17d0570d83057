"""What the last epoch said of every image: embeddings kept by position, for clustering."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from transferbench.methods.method import Context, EmbedAll, Views
from transferbench.methods.parts.collectives import (
    from_first_process,
    gather,
    rank,
    sum_over_processes,
    world_size,
)


class FeatureBank(nn.Module):
    """Embeddings of the last epoch in the order in which they came, and whose they are.

    Batch t of an epoch overwrites the rows from t * B on, without averaging. A row is at most one
    epoch old; an image may be at any row, and those of a dropped last batch at none
    (facebookresearch/swav: main_deepclusterv2.py). Every process keeps its own images' rows.

    Parameters
    ----------
    context : Context
        Its steps in an epoch, times a process's share of a batch, are the number of rows R.
    views, width : int
        Views A kept of every image, and size D of an embedding.

    Attributes
    ----------
    index : Tensor (R,) int64
        The images' positions in the pretraining set; -1 while a row is empty.
    rows : Tensor (A, R, D)
    """

    index: Tensor
    rows: Tensor

    def __init__(self, context: Context, views: int, width: int) -> None:
        super().__init__()
        self.batch = context.batch_size // context.world_size
        self.images = context.num_images
        count = context.steps_per_epoch * self.batch
        self.register_buffer("index", torch.full((count,), -1))
        self.register_buffer("rows", torch.zeros(views, count, width))

    def is_full(self) -> bool:
        """Tell whether every row has been written."""
        return bool((self.index >= 0).all())

    def fill(self, embed_all: EmbedAll, embed: Callable[[Views], Tensor]) -> None:
        """Write all rows in one walk over augmented views, with the networks in training mode.

        `embed` gives (B, A, D). What lies beyond the last row, an incomplete last batch, is not
        embedded: it may be one image, of which batch norm has no variance.
        """
        seen = 0

        def embed_rows(views: Views) -> Tensor:
            nonlocal seen
            first, seen = seen, seen + len(views[0])
            if first < len(self.index):
                return embed(views)
            return self.rows.new_zeros(len(views[0]), len(self.rows), self.rows.shape[2])

        self.write(0, *embed_all(embed_rows, views="train", training=True))

    @torch.no_grad()
    def write(self, start: int, indices: Tensor, embeddings: Tensor) -> None:
        """Put embeddings (B, A, D) of the images `indices` (B,) into the rows from `start` on.

        What goes beyond the last row is left out, as an incomplete last batch is in training.
        """
        stop = min(start + len(indices), len(self.index))
        self.index[start:stop] = indices[: stop - start]
        self.rows[:, start:stop] = embeddings[: stop - start].transpose(0, 1).to(self.rows.dtype)

    @torch.no_grad()
    def draw(self, view: int, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` different rows (count, D) of all processes', drawn at random.

        Rows are numbered by step, then process, so that the number of processes plays no part.
        """
        total = len(self.index) * world_size()
        chosen = torch.randperm(total, generator=generator)[:count].to(self.index.device)
        chosen = from_first_process(chosen)
        step, place = chosen // (self.batch * world_size()), chosen % (self.batch * world_size())
        own = (place // self.batch == rank())[:, None]
        local = self.rows[view, step * self.batch + place % self.batch]
        return sum_over_processes(local.masked_fill(~own, 0))

    @torch.no_grad()
    def by_image(self, values: Tensor, missing: float) -> Tensor:
        """Sort what belongs to the rows, (R, ...), to the images of all processes, (N, ...).

        Images that no process has in its bank get `missing`.
        """
        known = self.index >= 0
        values = torch.where(known.view(-1, *[1] * (values.ndim - 1)), values, missing)
        result = values.new_full((self.images, *values.shape[1:]), missing)
        indices, values = gather(self.index), gather(values)
        known = indices >= 0
        result[indices[known]] = values[known]
        return result
