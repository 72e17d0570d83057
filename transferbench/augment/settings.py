"""How views are made: the part of a recipe that names the augmentation. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Strength = Annotated[float, Field(ge=0.0)]

OPERATIONS = (
    "crop",
    "flip",
    "rotate",
    "jitter",
    "grayscale",
    "blur",
    "randaugment",
    "solarize",
    "sobel",
    "noise",
    "cutout",
)
"""Every operation, in the order used unless a view gives its own."""

NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation by name, for images in [0, 1]."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _check_range(name: str, low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"{name} must be [smallest, largest], not [{low:g}, {high:g}]")


class CropSettings(_Settings):
    """Random resized crop.

    Attributes
    ----------
    scale : (float, float)
        Area of the box as a share of the image's, drawn uniformly.
    ratio : (float, float)
        Width over height of the box, drawn log-uniformly.
    interpolation : {"bilinear", "bicubic"}
        How the box is resized; always with antialiasing, as Pillow does.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_range("scale", *self.scale)
        _check_range("ratio", *self.ratio)
        if not (self.scale[0] > 0 and self.scale[1] <= 1):
            raise ValueError("scale must lie in (0, 1]: it is a share of the image's area")
        if self.ratio[0] <= 0:
            raise ValueError("ratio must be positive: it is width over height")
        return self


class PadCropSettings(_Settings):
    """Zero-pad every side by `padding` pixels, then cut a box of the view's size at random."""

    padding: int = Field(default=4, ge=0, le=512)


class JitterSettings(_Settings):
    """Colour jitter: four operations in a random order of each image's own.

    Attributes
    ----------
    p : float
        Probability that an image is jittered at all.
    brightness, contrast, saturation : float
        Strength x: the factor is uniform in [max(0, 1 - x), 1 + x]; 0 leaves the operation out.
    hue : float
        The shift is uniform in [-hue, hue] turns of the colour circle; at most 0.5.
    brightness_mode : {"multiply", "add"}
        "add" draws a summand from [-x, x] instead of a factor (SimCLR v1, BYOL).
    contrast_mode : {"gray-mean", "channel-mean"}
        What contrast is about: the mean gray of the image (torchvision) or each channel's mean
        (the TensorFlow codes of SimCLR and BYOL).
    saturation_mode : {"blend", "hsv"}
        Blend with the gray image (torchvision) or scale the HSV saturation (TensorFlow).
    """

    p: Probability = 0.8
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    brightness_mode: Literal["multiply", "add"] = "multiply"
    contrast_mode: Literal["gray-mean", "channel-mean"] = "gray-mean"
    saturation_mode: Literal["blend", "hsv"] = "blend"


class BlurSettings(_Settings):
    """Gaussian blur.

    Attributes
    ----------
    p : float
        Probability that an image is blurred.
    sigma : (float, float)
        Standard deviation in pixels, drawn uniformly for each image.
    size : int or None
        The kernel has 2 * (size // 2) + 1 taps; None takes a tenth of the view's side, as SimCLR.
    padding : {"zero", "reflect"}
        What lies beyond the border; "reflect" mirrors without repeating the edge pixel.
    """

    p: Probability = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    size: Annotated[int, Field(ge=1, le=255)] | None = None
    padding: Literal["zero", "reflect"] = "zero"

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_range("sigma", *self.sigma)
        if self.sigma[0] <= 0:
            raise ValueError("sigma must be positive")
        return self


class RandAugmentSettings(_Settings):
    """Random operations of `augment.randaugment`, as InfoMin uses them.

    Attributes
    ----------
    operations : int
        How many are drawn for each image, with replacement, out of fifteen.
    p : float
        Probability that a drawn operation is applied.
    magnitude, magnitude_std : float
        Mean and standard deviation of an operation's strength, normal and clipped to [0, 10].
    """

    operations: int = Field(default=2, ge=1, le=32)
    p: Probability = 0.5
    magnitude: Annotated[float, Field(ge=0.0, le=10.0)] = 10.0
    magnitude_std: Strength = 0.5


class CutoutSettings(_Settings):
    """A square of side `length` pixels around a random pixel, cut at the border, set to 0."""

    p: Probability = 1.0
    length: int = Field(ge=2)


class NoiseSettings(_Settings):
    """Add Normal(0, std) to every value of an image in [0, 1], then clip."""

    p: Probability = 1.0
    std: float = Field(default=0.1, gt=0.0)


class ViewSettings(_Settings):
    """One `[[views]]` entry: `count` views of `size` pixels drawn in the same way.

    Attributes
    ----------
    crop, pad_crop : CropSettings, PadCropSettings or None
        Where a view is cut from; at most one. Without either the shorter side is resized to
        `size` and the centre cut out.
    flip, grayscale, solarize : float
        Probabilities. Solarize inverts values of at least 0.5.
    rotate : float
        Probability of a turn by 90, 180 or 270 degrees, each equally likely.
    sobel : float
        Probability of replacing an image by the magnitude of its gray gradient.
    order : tuple of str
        The operations in the order in which they act, "crop" first (it stands for either crop).
        What a view does not use may be left out.
    """

    count: int = Field(default=1, ge=1, le=64)
    size: int = Field(ge=4, le=4096)
    crop: CropSettings | None = None
    pad_crop: PadCropSettings | None = None
    flip: Probability = 0.0
    rotate: Probability = 0.0
    jitter: JitterSettings | None = None
    grayscale: Probability = 0.0
    blur: BlurSettings | None = None
    randaugment: RandAugmentSettings | None = None
    solarize: Probability = 0.0
    sobel: Probability = 0.0
    noise: NoiseSettings | None = None
    cutout: CutoutSettings | None = None
    order: tuple[str, ...] = OPERATIONS

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop is not None and self.pad_crop is not None:
            raise ValueError("a view has either 'crop' or 'pad_crop', not both")
        for name in self.order:
            if name not in OPERATIONS:
                raise ValueError(f"order: no operation '{name}'; valid: {', '.join(OPERATIONS)}")
        if self.order[:1] != ("crop",):
            raise ValueError("order must begin with 'crop': it gives a view its size")
        if len(set(self.order)) != len(self.order):
            raise ValueError("order names an operation twice")
        if self.blur is not None and (self.blur.size or 0) // 2 >= self.size:
            raise ValueError(f"blur.size must be below twice the view's size, {self.size}")
        for name in self.used():
            if name not in self.order:
                raise ValueError(f"order must name '{name}', which this view uses")
        return self

    def used(self) -> tuple[str, ...]:
        """Return the operations that can change an image of this view, cutting included."""
        on = {
            "crop": True,
            "flip": self.flip > 0,
            "rotate": self.rotate > 0,
            "jitter": self.jitter is not None and self.jitter.p > 0,
            "grayscale": self.grayscale > 0,
            "blur": self.blur is not None and self.blur.p > 0,
            "randaugment": self.randaugment is not None and self.randaugment.p > 0,
            "solarize": self.solarize > 0,
            "sobel": self.sobel > 0,
            "noise": self.noise is not None and self.noise.p > 0,
            "cutout": self.cutout is not None and self.cutout.p > 0,
        }
        return tuple(name for name in OPERATIONS if on[name])


class Normalization(_Settings):
    """Subtract `mean` and divide by `std`, per channel of an image in [0, 1].

    A recipe may write a name instead: "imagenet" (the default), "cifar" or "none".
    """

    mean: tuple[float, float, float] = NORMALIZATIONS["imagenet"][0]
    std: tuple[float, float, float] = NORMALIZATIONS["imagenet"][1]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in NORMALIZATIONS:
            raise ValueError(f"no normalization '{value}'; valid: {', '.join(NORMALIZATIONS)}")
        mean, std = NORMALIZATIONS[value]
        return {"mean": mean, "std": std}

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self
