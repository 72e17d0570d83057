"""Exact gradients of a batch that does not fit into memory, for any method.

What couples images is in `loss`, and what is large is in `embed`; so the loss is taken over the
embeddings of the whole batch while only one micro-batch's activations are alive (the gradient
cache of arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from transferbench.methods.method import BatchInfo, Embeddings, Method, Views
from transferbench.methods.parts.precision import raise_half


def cached_gradients(
    method: Method,
    views: Views,
    batch: BatchInfo,
    micro_batches: int,
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Tensor, Embeddings]:
    """Add the gradients of `loss(embed(views))` to the parameters, one micro-batch at a time.

    Every micro-batch passes `embed` twice: without a graph, to give the loss its embeddings, and
    again, with the same random numbers, to carry the loss's gradient on. Batch norm normalises
    over a micro-batch; its running statistics move in the first pass alone.

    Parameters
    ----------
    method : Method
        In training mode.
    views : tuple of Tensor (B, 3, S, S)
        The whole batch.
    batch : BatchInfo
        Of the whole batch.
    micro_batches : int
        Into how many parts the B images are cut, 1 to B; they differ by at most one image.
    autocast : callable
        Makes the context in which `embed` runs, e.g. `lambda: torch.autocast("cuda")`.

    Returns
    -------
    loss : Tensor ()
        Detached.
    embeddings : Embeddings
        Of the whole batch, detached; half precision raised to float32, as the loss gets them.
    """
    if not 1 <= micro_batches <= len(views[0]):
        raise ValueError(f"{len(views[0])} images cannot be cut into {micro_batches} parts")
    bounds = [len(views[0]) * i // micro_batches for i in range(micro_batches + 1)]
    parts = [
        (tuple(view[start:stop] for view in views), batch.part(start, stop))
        for start, stop in pairwise(bounds)
    ]

    replays, pieces = [], []
    for part_views, part_batch in parts:
        replays.append(_random_state(batch.generator, views[0].device))
        with torch.no_grad(), autocast():
            pieces.append(method.embed(part_views, part_batch))
    whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    leaves = {
        name: raise_half(value).requires_grad_(value.is_floating_point())
        for name, value in whole.items()
    }
    loss = method.loss(leaves, batch)
    torch.autograd.backward(loss)
    del whole, pieces

    after = _random_state(batch.generator, views[0].device)
    with _running_statistics_kept(method):
        for (part_views, part_batch), replay, start, stop in zip(
            parts, replays, bounds[:-1], bounds[1:], strict=True
        ):
            replay()
            with autocast():
                embeddings = method.embed(part_views, part_batch)
            outputs, gradients = [], []
            for name, value in embeddings.items():
                gradient = leaves[name].grad
                if value.requires_grad and gradient is not None:
                    outputs.append(value)
                    gradients.append(gradient[start:stop].to(value.dtype))
            torch.autograd.backward(outputs, gradients)
    after()
    return loss.detach(), {name: leaf.detach() for name, leaf in leaves.items()}


def _random_state(generator: torch.Generator, device: torch.device) -> Callable[[], None]:
    """Remember the state of all chance that `embed` may use; calling the result restores it."""
    own, cpu = generator.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        generator.set_state(own)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)

    return restore


@contextmanager
def _running_statistics_kept(method: Method) -> Iterator[None]:
    """Normalise by the batch as in training, but leave the running statistics alone."""
    norms = [
        module
        for module in method.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
