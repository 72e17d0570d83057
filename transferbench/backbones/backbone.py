"""Any pretrained network behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transferbench.backbones.settings import Interpolation

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Backbone:
    """A network that turns images into features, with the preprocessing it was trained for.

    Attributes
    ----------
    name : str
        Short name for tables and folders.
    module : nn.Module
        Normalised images (B, 3, input_size, input_size) to features (B, D), in evaluation mode.
    input_size : int
        Side of the input in pixels.
    mean, std : tuple of 3 floats
        Subtracted and divided after scaling the image to [0, 1], per RGB channel.
    interpolation : {"bilinear", "bicubic"}
        Filter for resizing the shorter side to `input_size` (a centre crop follows).
    digest : str
        SHA-256 that identifies weights, architecture and preprocessing.
    cacheable : bool
        Whether equal digests mean equal features, so that features may be kept from one run to
        the next; no digest says that of a module whose code and attributes are anyone's.
    notes : mapping
        What loading found, JSON values: how features are pooled, which release and branch a
        weights file held, what of it was dropped.
    """

    name: str
    module: nn.Module
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    digest: str
    cacheable: bool = True
    notes: Mapping[str, Any] = field(default_factory=dict)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images (B, H, W, 3) into the module's input, float32 (B, 3, H, W)."""
        pixels = images.permute(0, 3, 1, 2).float().div_(255.0)
        mean = pixels.new_tensor(self.mean).view(1, 3, 1, 1)
        std = pixels.new_tensor(self.std).view(1, 3, 1, 1)
        return pixels.sub_(mean).div_(std)
