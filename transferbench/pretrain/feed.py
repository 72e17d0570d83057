"""Batches of views, the same in every process that comes to the same step of the same recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from transferbench.augment.views import MultiView, plain_view
from transferbench.data.dataset import Dataset
from transferbench.errors import UserError
from transferbench.methods.method import Views
from transferbench.pretrain.recipe import Recipe
from transferbench.progress import Progress


def derived_seed(seed: int, *purpose: object) -> int:
    """Return a seed (32 bits) for one purpose, unrelated to those of the others."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def stored_size(view_sizes: Iterable[int]) -> int:
    """Return the side at which images of mixed sizes are held, if the recipe does not say.

    A random crop is a part of the image, so that there must be more pixels than the view shows:
    twice the largest view's for small ones, above 64 px the usual 256 for 224.
    """
    largest = max(view_sizes)
    return 2 * largest if largest <= 64 else round(largest * 8 / 7)


class Feed:
    """The training images of a data set, in the order and the views that a recipe asks for.

    The order of an epoch and the views of a batch are drawn from the seed and the epoch or step
    alone, so that a run continues at any step without a generator's state.

    Parameters
    ----------
    recipe : Recipe
    dataset : Dataset
    device : torch.device
        Where views are made.
    labelled : bool
        Whether batches have labels.
    progress : Progress
        Shows the decoding of images.

    Raises
    ------
    UserError
        If there are fewer images than one batch, or labels are wanted and there is not one each.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        *,
        device: torch.device,
        labelled: bool,
        progress: Progress,
    ) -> None:
        split = dataset.splits["train"]
        if len(split) < recipe.batch_size:
            raise UserError(
                f"batch_size is {recipe.batch_size}, but '{recipe.data}' has {len(split)} training "
                "images: not one batch; lower batch_size"
            )
        if labelled and dataset.task != "multiclass":
            raise UserError(
                f"the method '{recipe.method}' needs one label an image, "
                f"but '{recipe.data}' is a {dataset.task} set"
            )
        self.recipe, self.device = recipe, device
        self.skipped = split.skipped
        self._labels = torch.from_numpy(split.labels.astype(np.int64)) if labelled else None
        self._starts = (0, *(phase.from_epoch for phase in recipe.phases), recipe.epochs)
        views = [recipe.views]
        for phase in recipe.phases:
            views.append(phase.views or views[0])
        self._views = [MultiView(each, recipe.normalization) for each in views]
        size = recipe.image_size or (None if split.native_size else stored_size(self.all_sizes))
        self._pixels = split.pixels(size, progress=progress)
        for each in self._views:
            # What cannot be cut from these images shows at once, not in the first step.
            each(torch.from_numpy(self._pixels[:1].copy()), torch.Generator())

    def __len__(self) -> int:
        """Number of images."""
        return len(self._pixels)

    @property
    def image_size(self) -> int:
        """Side in pixels at which the images are held."""
        return int(self._pixels.shape[1])

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Side of each view in pixels, in the first phase."""
        return self._views[0].sizes

    @property
    def later_view_sizes(self) -> list[tuple[int, ...]]:
        """Side of each view in pixels, in each later phase."""
        return [views.sizes for views in self._views[1:]]

    @property
    def all_sizes(self) -> set[int]:
        """Every side that a view has, in any phase."""
        return {size for views in self._views for size in views.sizes}

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self) // self.recipe.batch_size

    def phase(self, epoch: int) -> tuple[int, int, int]:
        """Return (number, first epoch, epoch after the last) of the phase an epoch is in."""
        for number, (start, stop) in enumerate(pairwise(self._starts)):
            if start <= epoch < stop:
                return number, start, stop
        raise IndexError(f"epoch {epoch} of {self.recipe.epochs}")

    def order(self, epoch: int) -> list[Tensor]:
        """Return the batches of an epoch, each the positions (B,) int64 of its images."""
        chance = torch.Generator().manual_seed(derived_seed(self.recipe.seed, "order", epoch))
        order = torch.randperm(len(self), generator=chance)
        size = self.recipe.batch_size
        return [order[n * size : (n + 1) * size] for n in range(self.steps_per_epoch)]

    def views(self, indices: Tensor, epoch: int, *purpose: object) -> Views:
        """Return the training views of some images; `purpose` (e.g. "step", 7) picks the draw."""
        seed = derived_seed(self.recipe.seed, "views", *purpose)
        # Drawn on the CPU everywhere: a GPU need not be waited for, and draws the same.
        chance = torch.Generator().manual_seed(seed)
        return self._views[self.phase(epoch)[0]](self._images(indices), chance)

    def plain(self, indices: Tensor) -> Tensor:
        """Return some images (B, 3, S, S), unaugmented, at the size of evaluation."""
        images = self._images(indices)
        return plain_view(images, self.recipe.evaluation_size, self.recipe.normalization)

    def labels(self, indices: Tensor) -> Tensor | None:
        """Return labels (B,) int64 on the device; None unless asked for at construction."""
        return None if self._labels is None else self._labels[indices].to(self.device)

    def walk(self, *shuffled_by: object) -> Iterator[Tensor]:
        """Yield the positions of all images in batches, once, the last one as it comes.

        In their order, or in the random one that `shuffled_by` (e.g. "embed_all", 7) picks.
        """
        order = torch.arange(len(self))
        if shuffled_by:
            chance = torch.Generator().manual_seed(derived_seed(self.recipe.seed, *shuffled_by))
            order = torch.randperm(len(self), generator=chance)
        yield from torch.split(order, self.recipe.batch_size)

    def _images(self, indices: Tensor) -> Tensor:
        images = torch.from_numpy(self._pixels[indices.numpy()])
        if self.device.type == "cuda":
            # From pinned memory the copy runs beside the work that is queued already.
            return images.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device)
