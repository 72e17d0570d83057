"""Gradients from micro-batches equal those of the whole batch, for every method."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.conformance.bed import (
    BATCH,
    Data,
    build,
    detached,
    gradients,
    optimizer_of,
    train_step,
)
from transferbench.methods.parts.gradient_cache import cached_gradients
from transferbench.registry import names

METHODS = names("methods")


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_cached_gradients_equal_the_direct_ones(name: str, parts: int) -> None:
    """Batch norm is grouped by micro-batch in both; loss, gradients and statistics agree."""
    direct, data = build(name, dtype=torch.float64), Data(name, dtype=torch.float64)
    optimizer = optimizer_of(direct)
    for step in range(3):
        train_step(direct, optimizer, data, step)
    cached = build(name, seed=1, dtype=torch.float64)
    cached.load_state_dict(direct.state_dict())

    views, batch = data.step(3)
    for method in (direct, cached):
        method.before_step(batch)
        method.zero_grad()
    chance = batch.generator.get_state()
    bounds = [BATCH * i // parts for i in range(parts + 1)]
    pieces = [
        direct.embed(tuple(view[a:b] for view in views), batch.part(a, b))
        for a, b in pairwise(bounds)
    ]
    joined = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
    loss = direct.loss(joined, batch)
    loss.backward()

    batch.generator.set_state(chance)
    cached_loss, embeddings = cached_gradients(cached, views, batch, parts)

    assert torch.equal(cached_loss, loss.detach())
    for key, value in detached(joined).items():
        assert torch.equal(embeddings[key], value), key
    expected, actual = gradients(direct), gradients(cached)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-10, atol=1e-12, msg=key)
    for key, buffer in direct.named_buffers():
        assert torch.equal(cached.get_buffer(key), buffer), key


def test_random_layers_draw_the_same_numbers_in_both_passes() -> None:
    data = Data("supervised")
    views, batch = data.step(0)

    def with_dropout(seed: int) -> torch.Tensor:
        method = build("supervised")
        method.classifier = torch.nn.Sequential(torch.nn.Dropout(0.5), method.classifier)
        torch.manual_seed(seed)
        if seed == 0:
            method(views, batch).backward()
        else:
            torch.manual_seed(0)
            cached_gradients(method, views, batch, 1)
        grad = method.classifier[1].weight.grad
        assert grad is not None
        return grad

    torch.testing.assert_close(with_dropout(0), with_dropout(1))
