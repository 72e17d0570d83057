"""One forward pass for all views of one resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transferbench.methods.method import Views


def forward_by_resolution(network: nn.Module, views: Views) -> Tensor:
    """Run views of any sizes through a network, one pass a resolution.

    Views of one size are joined, so batch norm sees them together; resolutions apart. Images
    (B, 3, S, S) per view to (V, B, D), in the order of `views`
    (facebookresearch/swav: src/resnet50.py).
    """
    positions: dict[int, list[int]] = {}
    for position, view in enumerate(views):
        positions.setdefault(view.shape[-1], []).append(position)
    outputs: dict[int, Tensor] = {}
    for members in positions.values():
        joined = network(torch.cat([views[m] for m in members]))
        outputs.update(zip(members, joined.chunk(len(members)), strict=True))
    return torch.stack([outputs[position] for position in range(len(views))])


def embed_crops(backbone: nn.Module, projector: nn.Module, views: Views) -> tuple[Tensor, Tensor]:
    """Return unit embeddings (B, V, D) of all crops, and the first crop's features (B, F).

    One backbone pass a resolution; the projector's batch norm mixes all crops
    (facebookresearch/swav: src/resnet50.py).
    """
    features = forward_by_resolution(backbone, views)
    z = projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return F.normalize(z, dim=-1).transpose(0, 1), features[0].detach()
