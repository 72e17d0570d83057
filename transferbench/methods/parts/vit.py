"""What methods for vision transformers must know of a timm ViT."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.methods.parts.positions import sincos_positions


def require_vit(method: str, backbone: nn.Module) -> VisionTransformer:
    """Return the backbone if it is a plain timm ViT with positions, else refuse it."""
    name = type(backbone).__name__
    rule = f"backbone.name: {method} needs a timm VisionTransformer (vit_tiny_patch16_224 ...)"
    if not isinstance(backbone, VisionTransformer):
        raise UserError(f"{rule}, not a {name}")
    parts: Any = backbone
    if parts.pos_embed is None or not isinstance(parts.patch_embed, PatchEmbed):
        raise UserError(f"{rule} with one patch embedding and absolute positions, not this {name}")
    if parts.attn_pool is not None or not parts.global_pool:
        raise UserError(
            f"backbone.args.global_pool: {method} trains no attention pooling; "
            'take "token" or "avg"'
        )
    if parts.embed_dim % 4:
        raise UserError(
            f"backbone.args.embed_dim: {method}'s sine-cosine positions need a multiple of 4, "
            f"not {parts.embed_dim}"
        )
    return backbone


def fix_positions(vit: VisionTransformer, first: Literal["row", "column"]) -> None:
    """Replace learned positions by sine-cosine codes that stay as they are, in the state dict."""
    rows, columns = vit.patch_embed.grid_size
    positions: Any = vit.pos_embed
    codes = sincos_positions(
        rows,
        columns,
        vit.embed_dim,
        first=first,
        prefix=positions.shape[1] - rows * columns,
    )
    with torch.no_grad():
        positions.copy_(codes)
    positions.requires_grad_(False)


def initialize_linear(module: nn.Module, *, split_qkv: bool) -> None:
    """Draw every linear layer Xavier-uniform, with bias 0.

    Parameters
    ----------
    module : nn.Module
        A timm ViT or some of its blocks.
    split_qkv : bool
        Count the fused weight of query, key and value (3 D, D) as three matrices (MoCo v3), not as
        one (MAE).
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if split_qkv and name.rpartition(".")[2] == "qkv":
            bound = math.sqrt(6 / (layer.out_features / 3 + layer.in_features))
            nn.init.uniform_(layer.weight, -bound, bound)
        else:
            nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def initialize_patch_embedding(vit: VisionTransformer) -> None:
    """Draw the patch embedding's kernel as the linear layer that it is, Xavier-uniform."""
    weight = vit.patch_embed.proj.weight
    nn.init.xavier_uniform_(weight.data.view(len(weight), -1))


def encode_visible(vit: VisionTransformer, images: Tensor, keep: Tensor) -> Tensor:
    """Run the kept patches alone through a ViT.

    Parameters
    ----------
    vit : VisionTransformer
        Its patches get their positions before the others are left out.
    images : Tensor (B, 3, S, S)
    keep : Tensor (B, K) int64
        Which patches are kept, counted row by row.

    Returns
    -------
    Tensor (B, P + K, D)
        Tokens after the last norm: class and register tokens, then the kept patches.
    """
    tokens = vit._pos_embed(vit.patch_embed(images))
    prefix, patches = tokens.tensor_split([vit.num_prefix_tokens], dim=1)
    kept = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[-1]))
    x: Tensor = vit.norm(vit.blocks(vit.norm_pre(torch.cat([prefix, kept], dim=1))))
    return x


def pool(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    """Pool tokens (B, P + K, D) of `encode_visible` to (B, D) as the network itself pools."""
    features: Tensor = vit.forward_head(tokens, pre_logits=True)
    return features
