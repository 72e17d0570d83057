"""Networks from timm, without their classifier."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from transferbench.backbones.settings import NetworkSettings, Preprocessing
from transferbench.errors import UserError, unknown

_STEM_CODE = """\
network.conv1 = torch.nn.Conv2d(3, network.bn1.num_features, 3, 1, {pad}, bias=False)
network.maxpool = torch.nn.Identity()
"""
_SAME_CODE = """\
from timm.layers import Conv2dSame
for name, conv in list(network.named_modules()):
    if isinstance(conv, torch.nn.Conv2d) and conv.stride != (1, 1) and conv.kernel_size != (1, 1):
        size = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
        network.set_submodule(name, Conv2dSame(*size, groups=conv.groups, bias=False))
"""
_SAME_POOL_CODE = """\
from timm.layers.pool2d_same import MaxPool2dSame
network.maxpool = MaxPool2dSame(3, 2)
"""
_STEM_PADDING = {"small": 1, "small-pad2": 2}


def build_network(settings: NetworkSettings, *, seed: int | None = None) -> nn.Module:
    """Build a timm network that gives pooled features.

    Parameters
    ----------
    settings : NetworkSettings
        Architecture, stem, further arguments.
    seed : int, optional
        Of the initial weights. The global random state is left as it was in either case.

    Returns
    -------
    nn.Module
        Normalised images (B, 3, S, S) to features (B, D), with D in its `num_features`.

    Raises
    ------
    UserError
        If timm has no such architecture (with the nearest), does not take the arguments, or the
        architecture has no stem or padding that another could replace.
    """
    import timm

    check_architecture(settings.name)
    # Seeding reaches every GPU's generator too.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = list(range(torch.cuda.device_count())) if started else []
    with torch.random.fork_rng(devices=gpus):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            network: Any = timm.create_model(
                settings.name, pretrained=False, num_classes=0, **settings.args
            )
        # timm passes arguments through to constructors that check them each in its own way.
        except Exception as error:
            raise UserError(
                f"timm cannot build '{settings.name}' with args {settings.args}: "
                f"{first_line(error)}; another architecture needs args of its own"
            ) from error
        if settings.stem in _STEM_PADDING:
            _shrink_stem(network, settings)
        if settings.padding != "standard":
            _pad_same(network, settings)
    # Networks with a layer between pooling and classifier give that layer's width.
    network.num_features = int(getattr(network, "head_hidden_size", network.num_features))
    assert isinstance(network, nn.Module)
    return network


def check_architecture(name: str) -> None:
    """Raise a UserError with the nearest names unless timm has the architecture `name`."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("architecture", architecture, timm.list_models(), where="timm")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise unknown("pretrained tag", tag, tags, where=f"timm's {architecture}")


def default_preprocessing(name: str) -> Preprocessing:
    """Return what timm's default configuration of an architecture says about its input.

    Raises
    ------
    UserError
        If timm has no such architecture, or its input is not a square.
    """
    import timm

    check_architecture(name)
    given: Any = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    config = {} if given is None else given.to_dict()
    _, height, width = config.get("input_size") or (3, 224, 224)
    if height != width:
        raise UserError(f"timm's {name} takes {height}x{width} px, but only squares are possible")
    filter_name = config.get("interpolation")
    return Preprocessing(
        input_size=height,
        mean=config.get("mean", Preprocessing.model_fields["mean"].default),
        std=config.get("std", Preprocessing.model_fields["std"].default),
        interpolation="bilinear" if filter_name == "bilinear" else "bicubic",
    )


def place(module: nn.Module, device: str) -> nn.Module:
    """Move a module to a device and into evaluation mode.

    Raises
    ------
    UserError
        If the device is not at hand.
    """
    try:
        return module.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device '{device}' cannot be used: {first_line(error)}") from error


def check_size(module: nn.Module, size: int, *, device: str, name: str) -> None:
    """Pass one blank image through a network, in the mode that it is in.

    Raises
    ------
    UserError
        If the network does not take images of `size` pixels.
    """
    try:
        with torch.inference_mode():
            module(torch.zeros(1, 3, size, size, device=device))
    # Each architecture checks its input in its own way, or breaks where it does not.
    except Exception as error:
        raise UserError(f"'{name}' cannot take images of {size} px: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def changes_as_code(settings: NetworkSettings) -> str:
    """Return Python that turns timm's `network` into ours, for readers with timm and torch alone.

    Empty where timm's own network is the one.
    """
    code = ""
    if settings.stem in _STEM_PADDING:
        code += _STEM_CODE.format(pad=_STEM_PADDING[settings.stem])
    if settings.padding == "same":
        code += _SAME_CODE
    if settings.padding != "standard" and settings.stem == "standard":
        code += _SAME_POOL_CODE
    return code


def fit_size(module: nn.Module, size: int, *, name: str) -> None:
    """Give a network with a position table the one for images of `size` pixels, by interpolation.

    Networks without a table, or that interpolate it at each image, stay as they are.

    Raises
    ------
    UserError
        If the size is no multiple of the patches'.
    """
    patches: Any = getattr(module, "patch_embed", None)
    resize: Any = getattr(module, "set_input_size", None)
    held = getattr(patches, "img_size", None)
    if resize is None or held is None or held[0] == size:
        return
    if getattr(module, "dynamic_img_size", False):
        return
    side = patches.patch_size[0]
    if size % side:
        raise UserError(
            f"'{name}' cannot take images of {size} px: the size must be a multiple of its "
            f"patches' {side} px"
        )
    try:
        resize(img_size=(size, size))
    # Each architecture checks its windows and strides in its own way.
    except Exception as error:
        raise UserError(f"'{name}' cannot take images of {size} px: {first_line(error)}") from error


def pooling_of(module: nn.Module) -> str | None:
    """Return how a timm network pools: "avg", "token", ...; None for one that does not say."""
    for holder in (module, getattr(module, "head", None)):
        pool: Any = getattr(holder, "global_pool", None)
        kind = getattr(pool, "pool_type", pool)
        if isinstance(kind, str) and kind:
            return kind
    return None


def _shrink_stem(network: Any, settings: NetworkSettings) -> None:
    if not (hasattr(network, "conv1") and hasattr(network, "bn1") and hasattr(network, "maxpool")):
        raise UserError(
            f"'{settings.name}' has no conv1, bn1 and maxpool, so it cannot have the small stem; "
            'take a ResNet, or stem = "standard"'
        )
    padding = _STEM_PADDING[settings.stem]
    conv = nn.Conv2d(3, network.bn1.num_features, 3, stride=1, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    network.conv1 = conv
    network.maxpool = nn.Identity()


def _pad_same(network: Any, settings: NetworkSettings) -> None:
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.pool2d_same import MaxPool2dSame

    pool = getattr(network, "maxpool", None)
    if not isinstance(pool, nn.MaxPool2d | nn.Identity) or not hasattr(network, "layer1"):
        raise UserError(
            f"'{settings.name}' is no ResNet with a pooling in its stem, so its padding cannot be "
            f"'{settings.padding}'; leave it out"
        )
    if isinstance(pool, nn.MaxPool2d):
        network.maxpool = MaxPool2dSame(pool.kernel_size, pool.stride)
    if settings.padding == "same-pool":
        return
    for name, conv in list(network.named_modules()):
        if isinstance(conv, nn.Conv2d) and conv.stride != (1, 1) and conv.kernel_size != (1, 1):
            same = Conv2dSame(
                conv.in_channels,
                conv.out_channels,
                kernel_size=cast(tuple[int, int], conv.kernel_size),
                stride=cast(tuple[int, int], conv.stride),
                groups=conv.groups,
                bias=conv.bias is not None,
            )
            same.load_state_dict(conv.state_dict())
            network.set_submodule(name, same)
