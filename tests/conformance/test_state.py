"""The state dict is enough to resume, and `loss` changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conformance.bed import Data, build, cases, optimizer_of, train_step

METHODS = cases()
K = 5  # with 4 steps an epoch: the interruption is inside one


@pytest.mark.parametrize("name", METHODS)
def test_interrupted_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    straight, data = build(name), Data(name)
    optimizer = optimizer_of(straight)
    expected = [train_step(straight, optimizer, data, step) for step in range(2 * K)]

    first, data = build(name), Data(name)
    optimizer = optimizer_of(first)
    losses = [train_step(first, optimizer, data, step) for step in range(K)]
    torch.save(
        {
            "method": first.state_dict(),
            "optimizer": optimizer.state_dict(),
            "chance": data.method_chance.get_state(),
            "torch": torch.get_rng_state(),
        },
        tmp_path / "checkpoint.pt",
    )
    del first

    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second, data = build(name, seed=99), Data(name, seed=0)
    optimizer = optimizer_of(second)
    second.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    data.method_chance.set_state(state["chance"])
    torch.set_rng_state(state["torch"])
    losses += [train_step(second, optimizer, data, step) for step in range(K, 2 * K)]

    assert losses == expected
    for key, value in straight.state_dict().items():
        assert torch.equal(torch.as_tensor(second.state_dict()[key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_has_no_side_effects(name: str) -> None:
    method, data = build(name), Data(name)
    optimizer = optimizer_of(method)
    for step in range(3):
        train_step(method, optimizer, data, step)
    views, batch = data.step(3)
    method.before_step(batch)
    embeddings = method.embed(views, batch)
    before = {key: torch.as_tensor(v).clone() for key, v in method.state_dict().items()}
    chance, torch_chance = batch.generator.get_state(), torch.get_rng_state()
    first = method.loss(embeddings, batch)
    batch.generator.set_state(chance)
    torch.set_rng_state(torch_chance)
    second = method.loss(embeddings, batch)
    assert torch.equal(first, second)
    for key, value in method.state_dict().items():
        assert torch.equal(torch.as_tensor(value), before[key]), key
