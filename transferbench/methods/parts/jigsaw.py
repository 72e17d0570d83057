"""Jigsaw puzzles: one patch from each cell of an image, put together again in feature space.

arXiv 1912.01991 app. A.1; HobbitLong/PyContrast: pycontrast/datasets/util.py,
pycontrast/networks/util.py. Offsets go from 0 to cell - patch inclusive, as there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.parts.collectives import own_rows, world_size
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.precision import raise_half
from transferbench.methods.parts.requirements import require_image_side


def draw_puzzles(
    images: int, pieces: int, room: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw where the P patches of each image lie in their cells, and in which order they come.

    Every process draws for the images of all, one image after the other, and keeps its part: the
    puzzles are those of one process with the whole batch.

    Returns
    -------
    offsets : Tensor (B, P, 2) int64
        Down and right, 0 to `room` inclusive.
    orders : Tensor (B, P) int64
        A permutation for each image, all equally likely.
    """
    shape = (images * world_size(), pieces, 3)
    uniforms = own_rows(torch.rand(shape, generator=generator, dtype=torch.float64))
    return (uniforms[..., :2] * (room + 1)).long(), uniforms[..., 2].argsort(1)


def patch_boxes(offsets: Tensor, *, grid: int, cell: int, patch: int) -> Tensor:
    """Return each patch's box (..., P, 4): top, left, height, width in pixels.

    offsets (..., P, 2), down and right, of the P = grid * grid cells row by row.
    """
    number = torch.arange(grid * grid, device=offsets.device)
    corner = torch.stack([number // grid, number % grid], dim=1) * cell + offsets
    return torch.cat([corner, torch.full_like(corner, patch)], dim=-1)


def cut_patches(images: Tensor, offsets: Tensor, *, grid: int, cell: int, patch: int) -> Tensor:
    """Cut one patch from each cell of each image, row by row.

    images (B, 3, S, S) with S at least grid * cell, offsets (B, P, 2) give
    (B, P, 3, patch, patch).
    """
    boxes = patch_boxes(offsets.to(images.device), grid=grid, cell=cell, patch=patch)
    side = torch.arange(patch, device=images.device)
    rows = (boxes[..., 0, None] + side)[..., :, None]
    columns = (boxes[..., 1, None] + side)[..., None, :]
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    # Indexing puts the channels last, which is how convolutions like them.
    return images.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 1, 4, 2, 3)


class JigsawHead(nn.Module):
    """The embedding of a puzzle from the features of its patches.

    Parameters
    ----------
    features, output, pieces : int
        Widths of a patch's features and of the embedding, and P.
    hidden : int, optional
        Width of a hidden layer with ReLU before each patch's output; none by default.
    """

    def __init__(self, features: int, output: int, pieces: int, *, hidden: int | None = None):
        super().__init__()
        self.each = mlp([features, *([hidden] if hidden else []), output], norm=False)
        self.together = nn.Linear(pieces * output, output)

    def forward(self, features: Tensor, order: Tensor) -> Tensor:
        """Embed puzzles: features (B, P, F), order (B, P) to unit rows (B, D)."""
        return self.join(self.each(features), order)

    def join(self, patches: Tensor, order: Tensor) -> Tensor:
        """Join patches (B, P, D), the piece order[i, p] of image i at place p, to (B, D)."""
        order = order.to(patches.device)[..., None].expand_as(patches)
        joined = self.together(patches.gather(1, order).flatten(1))
        return F.normalize(raise_half(joined), dim=1)


def require_puzzle(
    method: str, context: Context, backbone: nn.Module, *, view: int, grid: int, patch: int
) -> int:
    """Return the side in pixels of a cell of the puzzle that is cut from view number `view`.

    Refuses a patch that is larger, and a network that does not take patches.
    """
    size = context.view_sizes[view]
    cell = size // grid
    if patch > cell:
        raise UserError(
            f"settings.patch: {patch} px are more than a cell of {method}'s puzzle has, {cell} px, "
            f"when its view of {size} px is cut into {grid} x {grid} (settings.grid)"
        )
    require_image_side(method, backbone, patch, key="settings.patch")
    return cell
