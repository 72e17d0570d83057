"""RandAugment as InfoMin uses it (arXiv 2005.10243), on batches of 8-bit images.

HobbitLong/PyContrast: pycontrast/datasets/RandAugment.py, an early copy of timm's. Other than in
arXiv 1909.13719, a drawn operation is applied with a probability only, magnitudes are noisy, and
Invert takes part. Its artefacts are kept: at magnitude 10 Solarize changes nothing. Pixels are
Pillow's, except that the bicubic kernel of moved images is torch's (-0.75 where Pillow has -1).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as pixels

from transferbench.augment.color import gray
from transferbench.augment.settings import RandAugmentSettings

COLORS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
)
"""These leave every pixel in its place."""

MOVES = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
"""These fetch each pixel from another place; the sign of their argument is random."""

OPERATIONS = COLORS + MOVES
"""All fifteen, equally likely."""

MODES: tuple[Literal["bilinear", "bicubic"], ...] = ("bilinear", "bicubic")

LARGEST = 10.0
"""Magnitudes are clipped to [0, LARGEST]."""

FILL = (124, 116, 104)
"""Colour of uncovered pixels: the ImageNet mean in 8 bits."""


class Plan(NamedTuple):
    """What happens to each image, step by step; each a tensor (B, N).

    kinds : int64, positions in OPERATIONS, -1 for nothing. arguments : float64. bicubic : bool,
    how MOVES sample; bilinear otherwise.
    """

    kinds: Tensor
    arguments: Tensor
    bicubic: Tensor


def argument(operation: str, magnitude: Tensor) -> Tensor:
    """Return an operation's arguments for magnitudes of any shape, before any change of sign.

    Degrees for Rotate; pixels across for one down (or the reverse) for a shear; the share of the
    side for a translation; bits kept for Posterize; a threshold and a summand in 0..256 for
    Solarize and SolarizeAdd; for Color, Contrast, Brightness and Sharpness the factor, 1 changing
    nothing; 0 for the others, which take none.
    """
    level = magnitude.clamp(0, LARGEST) / LARGEST
    match operation:
        case "Rotate":
            return level * 30
        case "ShearX" | "ShearY":
            return level * 0.3
        case "TranslateX" | "TranslateY":
            return level * 0.45
        case "Posterize":
            return (level * 4).floor()
        case "Solarize":
            return (level * 256).floor()
        case "SolarizeAdd":
            return (level * 110).floor()
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return level * 1.8 + 0.1
        case _:
            return torch.zeros_like(level)


def draw(settings: RandAugmentSettings, images: int, generator: torch.Generator) -> Plan:
    """Draw the plan of a batch of B images: N operations each, with replacement."""
    shape, device = (images, settings.operations), generator.device
    kinds = torch.randint(len(OPERATIONS), shape, generator=generator, device=device)
    uniforms = torch.rand(3, *shape, generator=generator, device=device, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
    magnitudes = settings.magnitude + settings.magnitude_std * noise
    arguments = torch.zeros_like(magnitudes)
    for kind, operation in enumerate(OPERATIONS):
        sign = torch.where(uniforms[1] < 0.5, -1.0, 1.0) if operation in MOVES else 1.0
        arguments = torch.where(kinds == kind, sign * argument(operation, magnitudes), arguments)
    kinds[uniforms[0] >= settings.p] = -1
    return Plan(kinds, arguments, uniforms[2] < 0.5)


def randaugment(images: Tensor, plan: Plan) -> Tensor:
    """Carry out a plan on images (B, 3, H, W), floats in [0, 1], in place.

    Images that something happens to are rounded to 8 bits first, as the source's are throughout.
    """
    chosen = (plan.kinds >= 0).any(1).nonzero().squeeze(1)
    plan = Plan(*(part[chosen] for part in plan))
    there = chosen.to(images.device)
    part = images.index_select(0, there).mul_(255).round_().to(torch.uint8)
    for kinds, arguments, bicubic in zip(*(tensor.unbind(1) for tensor in plan), strict=True):
        for kind, operation in enumerate(COLORS):
            here = (kinds == kind).nonzero().squeeze(1)
            if len(here):
                place = here.to(part.device)
                values = arguments[here].to(part.device, torch.float32)
                changed = recolor(operation, part.index_select(0, place), values)
                part.index_copy_(0, place, changed)
        moved = kinds >= len(COLORS)
        for mode in MODES:
            here = (moved & (bicubic == (mode == "bicubic"))).nonzero().squeeze(1)
            if len(here):
                place = here.to(part.device)
                matrices = sources(kinds[here], arguments[here], *part.shape[-2:])
                matrices = matrices.to(part.device, torch.float32)
                changed = resample(part.index_select(0, place), matrices, mode)
                part.index_copy_(0, place, changed)
    return images.index_copy_(0, there, part.to(images.dtype).div_(255))


def recolor(operation: str, images: Tensor, arguments: Tensor) -> Tensor:
    """Apply one of COLORS to images (B, 3, H, W) uint8, each with its argument (B,)."""
    value = arguments.view(-1, 1, 1, 1)
    match operation:
        case "AutoContrast":
            changed: Tensor = pixels.autocontrast_image(images)
            return changed
        case "Equalize":
            changed = pixels.equalize_image(images)
            return changed
        case "Invert":
            return 255 - images
        case "Posterize":
            return images & (256 - 2 ** (8 - value.int())).to(torch.uint8)
        case "Solarize":
            return torch.where(images < value, images, 255 - images)
        case "SolarizeAdd":
            brighter = (images + value).clamp(max=255).to(torch.uint8)
            return torch.where(images < 128, brighter, images)
        case "Color":
            return _away_from(gray(images).unsqueeze(1), images, value)
        case "Contrast":
            mean = gray(images).float().mean((-2, -1)).add(0.5).floor()
            return _away_from(mean.view(-1, 1, 1, 1), images, value)
        case "Brightness":
            return _away_from(images.new_zeros(()), images, value)
        case "Sharpness":
            return _away_from(_smooth(images), images, value)
        case _:
            raise ValueError(f"no operation '{operation}' in COLORS")


def _away_from(origin: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Return origin + factor * (images - origin), cut to whole numbers in 0..255, as Pillow."""
    origin = origin.float()
    return (origin + factor * (images - origin)).clamp_(0, 255).to(torch.uint8)


def _smooth(images: Tensor) -> Tensor:
    """Mix each pixel with its eight neighbours, 5 to 1 each; the border stays."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smoothed = images.clone()
    inner = F.conv2d(images.float(), kernel / 13, groups=3)
    smoothed[..., 1:-1, 1:-1] = inner.add_(0.5).clamp_(0, 255).to(torch.uint8)
    return smoothed


def sources(kinds: Tensor, arguments: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices (B, 2, 3) from an output's (x, y, 1) in pixels to its source's (x, y).

    kinds, arguments (B,), as in a `Plan`, of MOVES; float64.
    """
    matrices = arguments.new_zeros(len(kinds), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1
    for kind, operation in enumerate(MOVES, start=len(COLORS)):
        here = kinds == kind
        value = arguments[here]
        match operation:
            case "ShearX":
                matrices[here, 0, 1] = value
            case "ShearY":
                matrices[here, 1, 0] = value
            case "TranslateX":
                matrices[here, 0, 2] = value * width
            case "TranslateY":
                matrices[here, 1, 2] = value * height
            case _:
                # Counter-clockwise around the centre, which stays.
                cos, sin = value.deg2rad().cos(), value.deg2rad().sin()
                turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
                center = arguments.new_tensor([width / 2, height / 2])
                matrices[here, :, :2] = turn
                matrices[here, :, 2] = center - turn @ center
    return matrices


def resample(images: Tensor, matrices: Tensor, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Fetch the pixels of images (B, 3, H, W) uint8 by `sources`; FILL comes from outside."""
    height, width = images.shape[-2:]
    size = matrices.new_tensor((width, height))
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device) + 0.5,
        torch.arange(width, device=images.device) + 0.5,
        indexing="ij",
    )
    places = torch.einsum("bij,hwj->bhwi", matrices, torch.stack([x, y, torch.ones_like(x)], -1))
    values = F.grid_sample(
        images.float(),
        places * 2 / size - 1,
        mode=mode,
        padding_mode="border",
        align_corners=False,
    )
    # Pillow rounds the bicubic ones, and cuts the others to whole numbers; in double precision, so
    # what is whole there must not fall short of it here.
    values.add_(0.5 if mode == "bicubic" else 1e-3)
    inside = ((places >= 0) & (places < size)).all(-1).unsqueeze(1)
    fill = values.new_tensor(FILL).view(1, 3, 1, 1)
    return torch.where(inside, values, fill).clamp_(0, 255).to(torch.uint8)
