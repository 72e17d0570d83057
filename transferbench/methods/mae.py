"""MAE: reconstruct the pixels of hidden patches from the few visible ones.

Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377); official code
facebookresearch/mae.

Where paper and code differ, the code is followed: a patch's target is normalised by its unbiased
variance with 1e-6 in the root, as in the released weights (the paper's table 1 has raw pixels). The
backbone is a timm ViT; only visible patches pass it, and the decoder is no part of it. What its
features are, class token or mean of the patch tokens, is the recipe's (`backbone.args`). Masks are
drawn for the images of all processes, so those of one process differ from another's, and two
processes give what one gives with the whole batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from pydantic import Field
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.methods.method import (
    BatchInfo,
    Context,
    Embeddings,
    Method,
    MethodSettings,
    Views,
)
from transferbench.methods.parts.collectives import rank, world_size
from transferbench.methods.parts.positions import sincos_positions
from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.requirements import require_batch, require_views
from transferbench.methods.parts.vit import (
    encode_visible,
    fix_positions,
    initialize_linear,
    initialize_patch_embedding,
    pool,
    require_vit,
)


class MAESettings(MethodSettings):
    """Settings of `mae`."""

    mask_ratio: float = Field(default=0.75, gt=0.0, lt=1.0)
    """Share of the patches that is hidden; what is kept is rounded down."""
    normalize_targets: bool = True
    """Normalise the pixels of each target patch (released weights); off: raw pixels."""
    decoder_width: int = Field(default=512, ge=4, multiple_of=4)
    """Width of the decoder's tokens."""
    decoder_depth: int = Field(default=8, ge=1)
    """Number of the decoder's blocks."""
    decoder_heads: int = Field(default=16, ge=1)
    """Attention heads of a decoder block; they divide its width."""


class MAE(Method):
    """Asymmetric masked autoencoder on a ViT (arXiv 2111.06377)."""

    Settings = MAESettings

    def __init__(self, settings: MAESettings, backbone: nn.Module, context: Context) -> None:
        super().__init__(settings, backbone, context)
        require_views("mae", context, 1)
        require_batch("mae", context, 1)
        vit = require_vit("mae", backbone)
        _require_sizes(settings, vit.patch_embed.num_patches)
        fix_positions(vit, first="column")
        initialize_linear(vit, split_qkv=False)
        initialize_patch_embedding(vit)
        if vit.cls_token is not None:
            nn.init.normal_(vit.cls_token, std=0.02)
        self.decoder = Decoder(settings, vit)

    @property
    def vit(self) -> VisionTransformer:
        """The backbone, which has the parts of a ViT."""
        return cast(VisionTransformer, self.backbone)

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return what is reconstructed of each image, and what is there.

        "predictions" and "patches" (B, L, patch pixels * 3) of all patches, and "hidden" (B, L),
        true where the encoder did not see the patch. "features" are pooled from the visible ones.
        """
        (images,), vit = views, self.vit
        noise = self.noise(len(images), batch.generator).to(images.device)
        keep, restore, hidden = random_mask(noise, self.settings.mask_ratio)
        tokens = encode_visible(vit, images, keep)
        return {
            # With mean pooling timm may keep the last norm behind the pooling.
            "predictions": self.decoder(vit.fc_norm(tokens), restore),
            "patches": patchify(images, vit.patch_embed.patch_size),
            "hidden": hidden,
            "features": pool(vit, tokens).detach(),
        }

    def noise(self, images: int, generator: torch.Generator) -> Tensor:
        """Draw what orders the patches of this process's images, (images, L)."""
        patches = self.vit.patch_embed.num_patches
        drawn = torch.rand(images * world_size(), patches, generator=generator)
        return drawn[rank() * images : (rank() + 1) * images]

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return the mean squared error over the hidden patches."""
        targets = embeddings["patches"]
        if self.settings.normalize_targets:
            targets = normalize_patches(targets)
        hidden = embeddings["hidden"]
        error = hidden_error(embeddings["predictions"], targets, hidden)
        with torch.no_grad():
            # 0 for a gray answer, 1 for the pixels themselves.
            nothing = hidden_error(torch.zeros_like(targets), targets, hidden)
            self.log("explained", 1 - error / nothing)
        return error


class Decoder(nn.Module):
    """A narrow transformer from visible tokens to the pixels of all patches; for pretraining."""

    mask_token: nn.Parameter
    positions: Tensor

    def __init__(self, settings: MAESettings, vit: VisionTransformer) -> None:
        super().__init__()
        width, (rows, columns) = settings.decoder_width, vit.patch_embed.grid_size
        self.prefix = vit.num_prefix_tokens
        positions = sincos_positions(rows, columns, width, first="column", prefix=self.prefix)
        self.register_buffer("positions", positions.float())
        self.embed = nn.Linear(vit.embed_dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(*[
            Block(width, settings.decoder_heads, qkv_bias=True, norm_layer=norm)
            for _ in range(settings.decoder_depth)
        ])  # fmt: skip
        self.norm = norm(width)
        height, breadth = vit.patch_embed.patch_size
        self.predict = nn.Linear(width, height * breadth * 3)
        initialize_linear(self, split_qkv=False)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """Turn tokens (B, P + K, D) and `restore` (B, L) into pixels (B, L, patch pixels * 3)."""
        prefix, kept = self.embed(tokens).tensor_split([self.prefix], dim=1)
        x = torch.cat([prefix, unshuffle(kept, self.mask_token, restore)], dim=1)
        x = self.norm(self.blocks(x + self.positions))
        pixels: Tensor = self.predict(x[:, self.prefix :])
        return pixels


def kept_patches(patches: int, mask_ratio: float) -> int:
    """Return how many of an image's patches the encoder sees, rounded down."""
    return int(patches * (1 - mask_ratio))


def random_mask(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the patches of smallest noise (B, L).

    Returns
    -------
    keep : Tensor (B, K) int64
        The kept patches, by rising noise.
    restore : Tensor (B, L) int64
        Where each patch lies in the order of rising noise.
    hidden : Tensor (B, L) bool
        Which patches are not kept.
    """
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    count = kept_patches(noise.shape[1], mask_ratio)
    return order[:, :count], restore, restore >= count


def unshuffle(kept: Tensor, mask_token: Tensor, restore: Tensor) -> Tensor:
    """Put visible tokens (B, K, D) back in place, with the mask token (D) in the other places.

    `restore` (B, L) is that of `random_mask`; returns (B, L, D).
    """
    (images, count, width), patches = kept.shape, restore.shape[1]
    absent = mask_token.to(kept.dtype).expand(images, patches - count, width)
    return torch.cat([kept, absent], dim=1).gather(1, restore[..., None].expand(-1, -1, width))


def patchify(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, L, p * q * C), row by row.

    Within a patch of (p, q) pixels the order is row, column, channel.
    """
    (count, channels, height, width), (p, q) = images.shape, patch
    grid = images.reshape(count, channels, height // p, p, width // q, q)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


@at_least_float32
def normalize_patches(patches: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Bring each patch (..., n) to mean 0 and unbiased variance 1; a constant one becomes 0."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=1)
    return (patches - mean) * (variance + epsilon).rsqrt()


@at_least_float32
def hidden_error(predictions: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean squared error of the hidden patches of all images, a scalar.

    `predictions` and `targets` are (B, L, n), `hidden` (B, L) is true or 1 where a patch counts.
    """
    errors = (predictions - targets).square().mean(-1)
    weights = hidden.to(errors.dtype)
    return (errors * weights).sum() / weights.sum()


def _require_sizes(settings: MAESettings, patches: int) -> None:
    kept = kept_patches(patches, settings.mask_ratio)
    if not 0 < kept < patches:
        what = "none" if kept == 0 else "all"
        raise UserError(
            f"settings.mask_ratio: {settings.mask_ratio} keeps {what} of an image's "
            f"{patches} patches"
        )
    if settings.decoder_width % settings.decoder_heads:
        raise UserError(
            f"settings.decoder_heads: {settings.decoder_heads} must divide "
            f"settings.decoder_width, {settings.decoder_width}"
        )
