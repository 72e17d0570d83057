from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.parts.ema import frozen_copy, update_ema
from transferbench.methods.parts.heads import mlp
from transferbench.methods.parts.multicrop import forward_by_resolution
from transferbench.methods.parts.precision import at_least_float32
from transferbench.methods.parts.queue import is_full, push
from transferbench.methods.parts.requirements import require_batch, require_views


def test_mlp_has_the_layers_that_were_asked_for() -> None:
    head = mlp([4, 8, 8, 3], bias=False, last_bias=True, dropout=0.5)
    kinds = [type(layer).__name__ for layer in head]
    block = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert kinds == [*block, *block, "Linear"]
    assert [layer.bias is None for layer in head if isinstance(layer, nn.Linear)] == [
        True,
        True,
        False,
    ]
    assert [type(layer).__name__ for layer in mlp([4, 8, 3], norm=False)] == [
        "Linear",
        "ReLU",
        "Linear",
    ]
    assert head(torch.randn(5, 4)).shape == (5, 3)


def test_mlp_last_norm_trains_what_it_says() -> None:
    def trained(last_norm: str) -> tuple[bool, bool]:
        norm = mlp([4, 3], last_norm=last_norm)[-1]  # type: ignore[arg-type]
        assert isinstance(norm, nn.BatchNorm1d)
        return (
            norm.weight is not None and norm.weight.requires_grad,
            norm.bias is not None and norm.bias.requires_grad,
        )

    assert trained("scale") == (True, False)
    assert trained("plain") == (False, False)


def test_mlp_draws_weights_as_asked() -> None:
    layer = mlp([300, 300], weight_std=0.01)[0]
    assert isinstance(layer, nn.Linear)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_ema_moves_parameters_and_leaves_statistics() -> None:
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = frozen_copy(online)
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in online.parameters())
    before = [p.clone() for p in target.parameters()]
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(torch.randn_like(parameter))
    online(torch.randn(6, 3))
    update_ema(target, online, 0.9)
    for mine, old, theirs in zip(target.parameters(), before, online.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), 0.9 * old + 0.1 * theirs)
    norm, online_norm = target[1], online[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(online_norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_mean.abs().sum() == 0
    assert online_norm.running_mean is not None
    assert online_norm.running_mean.abs().sum() > 0


def test_ema_limits_are_exact() -> None:
    online, target = nn.Linear(3, 4), nn.Linear(3, 4)
    old = target.weight.clone()
    update_ema(target, online, 1.0)
    assert torch.equal(target.weight, old)
    update_ema(target, online, 0.0)
    assert torch.equal(target.weight, online.weight)
    assert target.weight is not online.weight


def test_ema_refuses_networks_of_other_shape() -> None:
    with pytest.raises(ValueError, match="zip"):
        update_ema(nn.Linear(3, 4, bias=False), nn.Linear(3, 4), 0.5)


def test_a_queue_is_first_in_first_out() -> None:
    queue = torch.zeros(5, 1)
    for i in range(1, 4):
        assert not is_full(queue)
        push(queue, torch.full((2, 1), float(i)))
    assert queue.flatten().tolist() == [3, 3, 2, 2, 1]
    assert is_full(queue)
    push(queue, torch.arange(5.0)[:, None])
    assert queue.flatten().tolist() == [0, 1, 2, 3, 4]


def test_more_rows_than_the_queue_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="queue of 2"):
        push(torch.zeros(2, 1), torch.zeros(3, 1))


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return images.amax((2, 3))


def test_multicrop_makes_one_pass_a_resolution_and_keeps_the_order() -> None:
    network = Recorder()
    sizes = (8, 4, 8, 6, 4)
    views = tuple(torch.full((2, 3, size, size), float(i)) for i, size in enumerate(sizes))
    outputs = forward_by_resolution(network, views)
    assert network.shapes == [(4, 3, 8, 8), (4, 3, 4, 4), (2, 3, 6, 6)]
    assert outputs.shape == (5, 2, 3)
    assert outputs[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_decorated_function_sees_no_half_precision_and_no_autocast() -> None:
    @at_least_float32
    def product(a: Tensor, b: Tensor, *, factor: float) -> Tensor:
        return factor * (a @ b)

    with torch.autocast("cpu", torch.bfloat16):
        half = product(torch.ones(2, 2).bfloat16(), torch.ones(2, 2), factor=2.0)
        double = product(torch.ones(2, 2).double(), b=torch.ones(2, 2).double(), factor=2.0)
    assert half.dtype == torch.float32
    assert double.dtype == torch.float64


def context(sizes: tuple[int, ...], batch: int = 8, processes: int = 1) -> Context:
    return Context(
        num_images=32,
        num_classes=None,
        view_sizes=sizes,
        batch_size=batch,
        total_steps=4,
        steps_per_epoch=4,
        epochs=1,
        world_size=processes,
    )


def test_requirements_name_the_key_and_the_rule() -> None:
    require_views("byol", context((8, 16)), 2)
    require_batch("byol", context((8, 8), 4, processes=2), 2)
    with pytest.raises(UserError, match=r"views: byol takes exactly 2 views .* give 3"):
        require_views("byol", context((8, 8, 8)), 2)
    with pytest.raises(UserError, match=r"views\.size: .* one size, not 8, 16 pixels"):
        require_views("simclr-v1", context((8, 16)), 2, one_size=True)
    with pytest.raises(UserError, match=r"batch_size: byol needs at least 2 images on each"):
        require_batch("byol", context((8, 8), 2, processes=2), 2)
    with pytest.raises(UserError, match=r"batch_size: 9 images do not divide by 2 processes"):
        require_batch("byol", context((8, 8), 9, processes=2), 2)
