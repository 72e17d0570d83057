from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferbench.methods.parts.sinkhorn import sinkhorn


def cosines(samples: int, prototypes: int, seed: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(samples, prototypes, generator=chance) - 1


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(2, 9), st.integers(0, 1000), st.integers(1, 5))
def test_every_code_is_a_distribution(
    samples: int, prototypes: int, seed: int, iterations: int
) -> None:
    codes = sinkhorn(cosines(samples, prototypes, seed), 0.05, iterations)
    assert codes.shape == (samples, prototypes)
    assert (codes >= 0).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(samples))


def test_prototypes_are_used_equally_in_the_limit() -> None:
    codes = sinkhorn(cosines(12, 5, 0).double(), 0.3, 200)
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 12 / 5, dtype=torch.float64))


def test_a_common_constant_changes_nothing() -> None:
    scores = cosines(6, 4, 0).double()
    torch.testing.assert_close(sinkhorn(scores + 50, 0.05, 3), sinkhorn(scores, 0.05, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_gives_the_codes_of_float64(dtype: torch.dtype) -> None:
    scores = cosines(6, 4, 0).to(dtype)
    codes = sinkhorn(scores, 0.005, 3)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes.double(), sinkhorn(scores.double(), 0.005, 3))


def test_equal_embeddings_get_uniform_codes() -> None:
    codes = sinkhorn(cosines(1, 5, 0).expand(8, 5), 0.05, 3)
    torch.testing.assert_close(codes, torch.full((8, 5), 0.2))


def test_vanished_exponentials_leave_no_nan() -> None:
    scores = torch.tensor([[0.0, -1.0], [-1e6, -1e6], [0.0, -1e6]])
    assert sinkhorn(scores, 0.05, 3).isfinite().all()


def test_codes_are_constants() -> None:
    assert not sinkhorn(torch.randn(3, 2, requires_grad=True), 0.05, 3).requires_grad
