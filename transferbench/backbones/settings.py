"""How a network and its input are described; torch-free, so that jobs are told apart without it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from transferbench.storage import canonical_json, digest

Interpolation = Literal["bilinear", "bicubic"]
Stem = Literal["standard", "small", "small-pad2"]
Padding = Literal["standard", "same", "same-pool"]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

# What the harness itself decides: features (B, D) of RGB images, weights from where it says.
_RESERVED = {
    "checkpoint_path",
    "features_only",
    "in_chans",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}


class NetworkSettings(BaseModel):
    """A timm architecture without its classifier.

    Attributes
    ----------
    name : str
        Any timm architecture, e.g. "resnet18" or "vit_small_patch16_224".
    stem : {"standard", "small", "small-pad2"}
        "small" is one 3x3 convolution of stride 1 and no pooling, for images of 64 px and less
        (arXiv 2002.05709, appendix B.9); "small-pad2" pads it by two pixels instead of one, as
        solo-learn does.
    padding : {"standard", "same", "same-pool"}
        "same" pads the strided convolutions and the first pooling of a ResNet as TensorFlow's
        SAME (BYOL's release), "same-pool" the pooling alone (SimCLR's).
    args : dict
        Further arguments of the timm constructor, JSON values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    stem: Stem = "standard"
    padding: Padding = "standard"
    args: dict[str, Any] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the usual padding: digests made before there was another one must hold."""
        plain: dict[str, Any] = dump(self)
        if plain.get("padding") == "standard":
            del plain["padding"]
        return plain

    @field_validator("args")
    @classmethod
    def _check_args(cls, args: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(_RESERVED & set(args))
        if taken:
            raise ValueError(f"'{taken[0]}' is set by transferbench")
        try:
            canonical_json(args)
        except (TypeError, ValueError) as error:
            raise ValueError(f"only JSON values are possible: {error}") from error
        return args


class Preprocessing(BaseModel):
    """What is done to an image before the network sees it.

    Attributes
    ----------
    input_size : int
        Side of the input in pixels: the shorter side is resized to it, a centre crop follows.
    mean, std : tuple of 3 floats
        Subtracted and divided after scaling to [0, 1], per RGB channel.
    interpolation : {"bilinear", "bicubic"}
        Filter of the resize.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_size: int = Field(ge=1, le=8192)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: Interpolation = "bicubic"

    @field_validator("std")
    @classmethod
    def _check_std(cls, std: Triple) -> Triple:
        if min(std) <= 0:
            raise ValueError("every value must be above 0")
        return std


def backbone_digest(weights: str, network: NetworkSettings, preprocessing: Preprocessing) -> str:
    """Return the SHA-256 that identifies a backbone.

    Parameters
    ----------
    weights : str
        SHA-256 of the weights as stored. One file gives one digest, whichever way it is named.
    network, preprocessing
        The architecture, and what is done to its input.
    """
    return digest(
        {
            "weights": weights,
            "network": network.model_dump(mode="json"),
            "preprocessing": preprocessing.model_dump(mode="json"),
        }
    )
