"""Golden cases of the augmentation operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.golden.harness import golden
from transferbench.augment import color, filters, geometry
from transferbench.augment.settings import JitterSettings

Inputs = dict[str, Any]


@golden("common/rrc")
def rrc_case(inputs: Inputs, params: Inputs, key: str) -> dict[str, Tensor]:
    boxes = geometry.random_boxes(
        params["H"],
        params["W"],
        torch.tensor(params["attempts"], dtype=torch.float64).unsqueeze(0),
        scale=tuple(params["scale"]),
        ratio=tuple(params["ratio"]),
    )
    return {name: value[0] for name, value in boxes._asdict().items()}


def jittered(image: Tensor, order: list[str], amounts: dict[str, float], **modes: str) -> Tensor:
    """Jitter one image (3, H, W), placed between two others that take other orders."""
    images = torch.stack((image.flip(0), image, image.flip(-1)))
    positions = torch.tensor([[color.JITTERS.index(name) for name in order]])
    turned = positions.flip(1)
    factors = {
        name: torch.tensor([value / 2, value, value / 3], dtype=image.dtype)
        for name, value in amounts.items()
    }
    settings = JitterSettings.model_validate(modes)
    return color.jitter(images, torch.cat((turned, positions, turned)), factors, settings)[1]


@golden("common/jitter")
def jitter_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    image = inputs["x"].double()
    name = key.split("/")[2]
    if name.startswith("order"):
        order = params["order"]
        return jittered(image, order, {op: params[op] for op in order})
    operation = name.split("-")[0]
    modes = {}
    if "additive" in name or "delta" in params:
        modes["brightness_mode"] = "add"
    if "channel-mean" in name:
        modes["contrast_mode"] = "channel-mean"
    if "hsv" in name:
        modes["saturation_mode"] = "hsv"
    amount = params.get("factor", params.get("delta", params.get("shift")))
    return jittered(image, [operation], {operation: amount}, **modes)


@golden("common/greyscale/float")
def gray_float_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    return color.grayscale(inputs["x"].double())[0]


@golden("common/greyscale/uint8")
def gray_uint8_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    planes = inputs["rgb"].to(torch.uint8).T.unsqueeze(-1)
    return color.gray(planes).squeeze(-1)


@golden("common/solarize/uint8")
def solarize_uint8_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    return color.solarize(inputs["x"].to(torch.uint8), params["threshold"])


@golden("common/solarize/float")
def solarize_float_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    return color.solarize(inputs["x"].double(), params["threshold"])


@golden("common/blur/kernel")
@golden("infomin/blur/kernel")
def kernel_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    sigma = torch.tensor([params["sigma"]], dtype=torch.float64)
    return filters.gaussian_kernel(sigma, params["size"])[0]


@golden("common/blur")
def blur_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    # Beside an image with another sigma, as in a batch.
    images = inputs["x"].double().expand(2, 1, *inputs["x"].shape)
    sigma = torch.tensor([2 * params["sigma"], params["sigma"]], dtype=torch.float64)
    return filters.blur(images, sigma, params["size"], padding=params["pad"])[1, 0]


@golden("common/sobel")
def sobel_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    return filters.sobel(inputs["x"].double().unsqueeze(0))[0]


@golden("common/cutout")
def cutout_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    image = inputs["x"].double()
    row, column = torch.tensor([params["cy"]]), torch.tensor([params["cx"]])
    return geometry.cutout(image.view(1, 1, *image.shape), row, column, params["length"])[0, 0]


@golden("common/rotate/90")
def quarter_turn_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    return geometry.quarter_turns(inputs["x"], 1)


@golden("common/rotate/180")
def half_turn_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    return geometry.quarter_turns(inputs["x"], 2)


@golden("common/rotate/270")
def three_quarter_turn_case(inputs: Inputs, params: Inputs, key: str) -> Tensor:
    return geometry.quarter_turns(inputs["x"], 3)
