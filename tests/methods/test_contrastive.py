from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.golden.harness import CASES, make_input
from transferbench.methods.parts.contrastive import info_nce, nt_xent_logits


def test_logits_hold_every_other_view_once() -> None:
    first, second = torch.randn(3, 4), torch.randn(3, 4)
    logits, positives = nt_xent_logits(first, second, 0.5)
    assert logits.shape == (6, 6)
    assert positives.tolist() == [3, 4, 5, 0, 1, 2]
    assert (logits == -torch.inf).nonzero().tolist() == [[i, i] for i in range(6)]
    expected = F.cosine_similarity(first[0], second[2], dim=0) / 0.5
    torch.testing.assert_close(logits[0, 5], expected)
    torch.testing.assert_close(logits[5, 0], expected)


def test_both_sides_receive_a_finite_gradient() -> None:
    first, second = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    F.cross_entropy(*nt_xent_logits(first, second, 0.1)).backward()
    for z in (first, second):
        assert z.grad is not None
        assert z.grad.isfinite().all()
        assert (z.grad.abs().sum(1) > 0).all()


def test_half_precision_is_raised() -> None:
    z = torch.randn(3, 4).half()
    logits, _ = nt_xent_logits(z, z, 0.001)
    assert logits.dtype == torch.float32
    assert logits.max() == pytest.approx(1000, rel=1e-3)


@pytest.mark.parametrize("key", ["moco-v1/loss/infonce", "moco-v1/loss/gradient-x"])
def test_info_nce_gives_the_published_values(key: str) -> None:
    cases = json.loads((CASES / "moco-v1.json").read_text())["cases"]
    case: dict[str, Any] = next(c for c in cases if c["key"] == key)
    inputs = {name: make_input(spec) for name, spec in case["inputs"].items()}
    x = inputs.get("x", inputs.get("q")).requires_grad_()
    query = F.normalize(x, dim=1) if "x" in inputs else x
    loss = info_nce(query, inputs["k"], inputs["queue"], case["params"]["T"]).mean()
    loss.backward()
    value = x.grad if "gradient" in key else loss
    torch.testing.assert_close(value, torch.tensor(case["expected"], dtype=torch.float64))


def test_info_nce_of_equal_rows_counts_the_candidates() -> None:
    row = F.normalize(torch.ones(1, 4), dim=1)
    losses = info_nce(row.expand(3, 4), row.expand(3, 4), row.expand(7, 4), 0.07)
    torch.testing.assert_close(losses, torch.full((3,), math.log(8)))
