"""Someone's module, borrowed in the middle of its training and given back as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from transferbench.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give the global generators of Python, numpy and torch (CPU, CUDA, MPS) their state back."""
    import torch

    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    on_mps = torch.backends.mps.is_available()
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_gpus = torch.cuda.get_rng_state_all() if on_gpu else []
    of_mps = torch.mps.get_rng_state() if on_mps else None
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if on_gpu:
            torch.cuda.set_rng_state_all(of_gpus)
        if of_mps is not None:
            torch.mps.set_rng_state(of_mps)


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and give it back as it was, however the block ends.

    What comes back: the mode of each part, values and storage of parameters and buffers, the
    gradients, which parameters are trained. Memory for one more copy of the values is taken.
    """
    import torch

    root = module.training
    modes = [(part, part.training) for part in module.modules()]
    # A part may replace a buffer as well as write into it.
    held = [(part, dict(part._parameters), dict(part._buffers)) for part in module.modules()]
    values = [(t, t.data, t.detach().clone()) for t in (*module.parameters(), *module.buffers())]
    grads = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    module.eval()
    try:
        yield
    finally:
        # Some parts merge weights, or keep results, in evaluation mode; their own way back is this.
        module.train(root)
        for part, training in modes:
            part.training = training
        for part, parameters, buffers in held:
            part._parameters, part._buffers = parameters, buffers
        with torch.no_grad():
            for tensor, data, value in values:
                if tensor.data_ptr() != data.data_ptr() or tensor.stride() != data.stride():
                    tensor.data = data
                if not torch.equal(data, value):
                    data.copy_(value)
        for parameter, grad, trained in grads:
            parameter.grad = grad
            parameter.requires_grad_(trained)


def bare(module: nn.Module) -> nn.Module:
    """Return the module inside what wraps it for training: DDP, data parallel, `torch.compile`.

    Passing images through a wrapper would wait for the other processes, or compile anew.
    """
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while True:
        inner: Any = getattr(module, "_orig_mod", None)
        if isinstance(module, DataParallel | DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def own_device(module: nn.Module) -> str:
    """Return where a module's weights are; the CPU for one that has none.

    Raises
    ------
    UserError
        If they are in several places, or some have no values yet.
    """
    from torch.nn.parameter import is_lazy

    weights = [*module.parameters(), *module.buffers()]
    if any(is_lazy(weight) for weight in weights):
        raise UserError(
            f"{type(module).__name__} has parameters without a shape yet; pass a batch of images "
            "through it first"
        )
    devices = _devices(module)
    if len(devices) > 1:
        raise UserError(
            f"the weights of {type(module).__name__} are on {' and '.join(devices)}; give "
            "'device', onto which a copy is then put"
        )
    return devices[0] if devices else "cpu"


def is_on(module: nn.Module, device: str) -> bool:
    """Return whether all weights are on a device; true of a module that has none."""
    import torch

    if device == "cuda":
        device = f"cuda:{torch.cuda.current_device()}"
    return _devices(module) in ([], [device])


def copied(module: nn.Module, device: str) -> nn.Module:
    """Return a copy on a device.

    Raises
    ------
    UserError
        If the module holds what cannot be copied.
    """
    from transferbench.backbones.build import first_line

    try:
        return copy.deepcopy(module).to(device)
    # A module may hold anything: locks, generators, tensors in the middle of a graph.
    except Exception as error:
        raise UserError(
            f"{type(module).__name__} cannot be copied to '{device}': {first_line(error)}; leave "
            "out 'device' to evaluate it where it is"
        ) from error


def _devices(module: nn.Module) -> list[str]:
    found = dict.fromkeys(str(each.device) for each in (*module.parameters(), *module.buffers()))
    # Of MPS there is one, which torch numbers and the commands do not.
    return [device.replace("mps:0", "mps") for device in found]
