from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.conformance.pair import run_on_both
from transferbench.methods.parts.collectives import (
    average_gradients,
    gather,
    max_over_processes,
    rank,
    sum_over_processes,
)

FIRST, SECOND = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])


def gathered(x: Tensor) -> tuple[Tensor, Tensor]:
    """The joined rows, and the gradient when process r weighs all of them by r + 1."""
    x.requires_grad_()
    rows = gather(x)
    (rows * (rank() + 1) * torch.tensor([[1.0], [10.0]])).sum().backward()
    assert x.grad is not None
    return rows, x.grad


def test_gather_joins_by_rank_and_returns_gradients_to_the_owner() -> None:
    (rows0, grad0), (rows1, grad1) = run_on_both(gathered, [(FIRST,), (SECOND,)])
    assert torch.equal(rows0, torch.cat([FIRST, SECOND]))
    assert torch.equal(rows1, rows0)
    # Row 0 is used by process 0 with weight 1 and by process 1 with weight 2; row 1 ten times so.
    assert torch.equal(grad0, torch.full((1, 2), 3.0))
    assert torch.equal(grad1, torch.full((1, 2), 30.0))


def summed(x: Tensor) -> tuple[Tensor, Tensor]:
    x.requires_grad_()
    total = sum_over_processes(x)
    (total * (rank() + 1)).sum().backward()
    assert x.grad is not None
    return total, x.grad


def test_a_sum_s_gradient_comes_from_every_process() -> None:
    for total, grad in run_on_both(summed, [(FIRST,), (SECOND,)]):
        assert torch.equal(total, FIRST + SECOND)
        assert torch.equal(grad, torch.full((1, 2), 3.0))


def test_the_maximum_is_over_processes() -> None:
    replies = run_on_both(max_over_processes, [(FIRST,), (torch.tensor([[0.0, 9.0]]),)])
    for reply in replies:
        assert torch.equal(reply, torch.tensor([[1.0, 9.0]]))


def averaged(gradient: Tensor) -> Tensor:
    with_gradient, without = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(1))
    with_gradient.grad = gradient
    average_gradients([with_gradient, without])
    assert without.grad is None
    return with_gradient.grad


def test_gradients_are_averaged_where_there_are_any() -> None:
    for reply in run_on_both(averaged, [(FIRST,), (SECOND,)]):
        assert torch.equal(reply, (FIRST + SECOND) / 2)


def test_alone_every_exchange_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x
    assert sum_over_processes(x) is x
    assert torch.equal(max_over_processes(x), x)
    assert not max_over_processes(x).requires_grad
