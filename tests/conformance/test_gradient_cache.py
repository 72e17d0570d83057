"""Gradients from micro-batches equal those of the whole batch, for every method."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.conformance.bed import (
    BATCH,
    Data,
    build,
    cases,
    detached,
    gradients,
    optimizer_of,
    train_step,
)
from transferbench.methods.parts.gradient_cache import cached_gradients

METHODS = cases()


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


def test_chance_goes_on_where_the_loss_left_it() -> None:
    """A loss that draws negatives must not see the same draws again in the next step."""

    method = build("supervised")
    loss_of = method.loss
    method.loss = lambda embeddings, batch: (  # type: ignore[method-assign]
        loss_of(embeddings, batch) * torch.rand((), generator=batch.generator)
    )
    views, batch = Data("supervised").step(0)
    chance = batch.generator.get_state()
    method(views, batch)
    expected = batch.generator.get_state()
    batch.generator.set_state(chance)
    cached_gradients(method, views, batch, 2)
    assert torch.equal(batch.generator.get_state(), expected)
    assert not torch.equal(expected, chance)


def test_half_precision_embeddings_reach_the_loss_in_float32() -> None:
    method, data = build("simclr-v1"), Data("simclr-v1")
    views, batch = data.step(0)
    loss, embeddings = cached_gradients(
        method, views, batch, 2, autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    assert loss.dtype == embeddings["z"].dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.backbone.parameters())


def test_more_parts_than_images_are_refused() -> None:
    views, batch = Data("supervised").step(0)
    with pytest.raises(ValueError, match="8 images cannot be cut into 9"):
        cached_gradients(build("supervised"), views, batch, 9)
