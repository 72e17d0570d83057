from __future__ import annotations

import pytest
import torch

from tests.conformance.bed import Data, build
from transferbench.errors import UserError
from transferbench.methods.barlow_twins import (
    BarlowTwins,
    cross_correlation,
    distances_from_identity,
)
from transferbench.methods.method import Context


def test_decorrelated_equal_views_cost_nothing() -> None:
    # Columns of a Hadamard matrix: mean 0, variance 1, orthogonal.
    z = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double()
    c = cross_correlation(z, 3 * z + 2)
    torch.testing.assert_close(c, torch.eye(3).double(), rtol=0, atol=1e-4)
    method = build("barlow-twins")
    _, batch = Data("barlow-twins").step(0)
    loss = method.loss({"z": torch.stack([z, z], dim=1)}, batch)
    assert float(loss) == pytest.approx(0, abs=1e-8)


def test_a_collapsed_batch_costs_one_a_dimension_and_has_a_gradient() -> None:
    method = build("barlow-twins")
    _, batch = Data("barlow-twins").step(0)
    z = torch.ones(8, 2, 5, requires_grad=True)
    loss = method.loss({"z": z}, batch)
    assert loss.item() == pytest.approx(5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_the_two_terms_add_up_to_the_loss_by_its_definition() -> None:
    c = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    invariance, redundancy = distances_from_identity(c)
    apart = (c - torch.eye(6)).square()
    torch.testing.assert_close(invariance, apart.diagonal().sum())
    torch.testing.assert_close(invariance + redundancy, apart.sum())


def test_the_scale_multiplies_the_loss_alone() -> None:
    whole, tenth = build("barlow-twins"), build("barlow-twins", loss_scale=0.1)
    views, batch = Data("barlow-twins").step(0)
    embeddings = whole.embed(views, batch)
    expected = 0.1 * whole.loss(embeddings, batch)
    torch.testing.assert_close(tenth.loss(embeddings, batch), expected)
    assert tenth.logged["invariance"] == whole.logged["invariance"]


def test_correlations_of_half_precision_are_taken_in_float32() -> None:
    z = torch.randn(8, 2, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert cross_correlation(z[:, 0], z[:, 1]).dtype == torch.float32


def test_one_view_is_refused() -> None:
    context = Context(
        num_images=32,
        num_classes=None,
        view_sizes=(16,),
        batch_size=8,
        total_steps=4,
        steps_per_epoch=4,
        epochs=1,
    )
    small = BarlowTwins.Settings(projector_hidden=4, projector_output=4)
    with pytest.raises(UserError, match="barlow-twins takes exactly 2 views"):
        BarlowTwins(small, build("barlow-twins").backbone, context)
