"""A backbone that learns nothing: how the two directions of a small picture vary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transferbench.errors import UserError
from transferbench.storage import digest

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone


class ThumbnailReference:
    """`thumbnail:SIDE`; its module imports no torch, so that jobs are told apart first."""

    def __init__(self, rest: str, *, seed: int) -> None:
        if not rest.isdecimal() or int(rest) < 2:
            raise UserError(f"'thumbnail:{rest}': the side is a number of pixels, 2 or more")
        self.text = f"thumbnail:{rest}"
        self.side = int(rest)

    @property
    def name(self) -> str:
        """Short name for records."""
        return f"thumbnail-{self.side}"

    def identity(self) -> dict[str, Any]:
        """Return what identifies it."""
        return {
            "digest": digest(["thumbnail", 1, self.side]),
            "preprocessing": {"input_size": self.side, "interpolation": "bilinear"},
        }

    def load(self, device: str) -> Backbone:
        """Return the backbone."""
        import torch
        from torch import Tensor, nn

        from transferbench.backbones.backbone import Backbone

        class Thumbnail(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                """Images (B, 3, S, S) to the mean change along rows and along columns (B, 2)."""
                down, across = (images.diff(dim=d).abs().mean((1, 2, 3)) for d in (2, 3))
                return torch.stack([down, across], dim=1)

        return Backbone(
            name=self.name,
            module=Thumbnail().to(device).eval(),
            input_size=self.side,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            interpolation="bilinear",
            digest=self.identity()["digest"],
        )
