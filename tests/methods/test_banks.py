"""What the methods with a memory bank keep, draw and refuse: insdis and pirl."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.conformance.bed import (
    BATCH,
    IMAGES,
    Data,
    TinyNet,
    build,
    detached,
    optimizer_of,
    tiny_vit,
    train_step,
)
from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.parts.bank import MemoryBank, log_normalizer, noise_contrastive_terms
from transferbench.methods.parts.jigsaw import cut_patches, draw_puzzles
from transferbench.methods.pirl import PIRL


def test_a_bank_starts_with_unit_rows() -> None:
    bank = MemoryBank(20, 8, momentum=0.5)
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(20))


def test_candidates_are_the_own_row_and_uniform_others() -> None:
    bank, chance = MemoryBank(10, 4, momentum=0.5), torch.Generator().manual_seed(0)
    indices = torch.tensor([7, 2])
    first = bank.candidates(indices, 5000, chance)
    second = bank.candidates(indices, 5000, chance)
    assert first.shape == (2, 5001)
    assert first[:, 0].tolist() == [7, 2]
    shares = torch.bincount(first[:, 1:].flatten(), minlength=10) / 10_000
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.015, rtol=0)
    assert not torch.equal(first, second)
    chance.manual_seed(0)
    assert torch.equal(first, bank.candidates(indices, 5000, chance))


def test_the_last_feature_of_an_image_that_comes_twice_counts() -> None:
    bank = MemoryBank(4, 3, momentum=0.5)
    old = bank.rows.clone()
    features = torch.nn.functional.normalize(torch.randn(3, 3), dim=1)
    bank.update(features, torch.tensor([1, 3, 1]))
    mixed = torch.nn.functional.normalize(old[[1, 3]] + features[[2, 1]], dim=1)
    torch.testing.assert_close(bank.rows[[1, 3]], mixed)
    assert torch.equal(bank.rows[[0, 2]], old[[0, 2]])


@pytest.mark.parametrize("name", ["insdis:nce", "pirl:nce"])
def test_z_is_the_first_batch_s_and_stays(name: str) -> None:
    method: Any = build(name)
    data, optimizer = Data(name), optimizer_of(method)
    assert not method.nce.is_set
    train_step(method, optimizer, data, 0)
    first = method.nce.log_z.clone()
    assert method.nce.is_set
    for step in range(1, 3):
        train_step(method, optimizer, data, step)
        assert method.nce.estimate(torch.randn(2, 3)) == first == method.nce.log_z
    # Of unit rows n exp(-1/T) <= Z <= n exp(1/T), and unrelated ones are near n.
    assert abs(float(first) - math.log(IMAGES)) < 1


def test_noise_contrast_survives_what_exponentials_do_not() -> None:
    scores = torch.tensor([[200.0, -200.0, 150.0]])
    log_z = log_normalizer(scores, 100)
    terms = noise_contrastive_terms(scores, log_z, noise=0.02, epsilon=1e-7)
    assert all(term.isfinite().all() for term in terms)
    assert float(terms[0]) == pytest.approx(
        math.log1p(0.02 * math.exp(float(log_z) - 200)), rel=1e-4
    )


def test_all_rows_equal_cost_what_the_sheet_says() -> None:
    method: Any = build("insdis")
    method.bank.rows.copy_(torch.eye(16)[0].expand(IMAGES, 16))
    _, batch = Data("insdis").step(0)
    f = torch.eye(16)[:BATCH]
    k = method.settings.negatives
    assert float(method.loss({"f": f}, batch)) == pytest.approx(math.log(k + 1))
    method = build("insdis:nce", proximal=0.0)
    method.bank.rows.copy_(torch.eye(16)[0].expand(IMAGES, 16))
    same = torch.eye(16)[0].expand(BATCH, 16)
    expected = (1 + k) * math.log(1 + k) - k * math.log(k)
    assert float(method.loss({"f": same}, batch)) == pytest.approx(expected, rel=1e-4)


def test_over_all_rows_each_branch_of_pirl_costs_what_instance_discrimination_does() -> None:
    both: Any = build("pirl:full", jigsaw_weight=0.25)
    alone: Any = build("insdis:full")
    alone.bank.rows.copy_(both.bank.rows)
    _, batch = Data("pirl").step(0)
    f, g = torch.eye(16)[:BATCH], torch.eye(16)[-BATCH:]
    costs = [float(alone.loss({"f": branch}, batch)) for branch in (f, g)]
    expected = 0.75 * costs[0] + 0.25 * costs[1]
    assert float(both.loss({"f": f, "g": g}, batch)) == pytest.approx(expected)


def test_the_puzzle_never_reaches_the_bank() -> None:
    method: Any = build("pirl")
    views, batch = Data("pirl").step(0)
    embeddings = detached(method.embed(views, batch))
    method.after_step(embeddings, batch)
    expected = method.bank.rows.clone()
    method = build("pirl")
    method.after_step({**embeddings, "g": -embeddings["g"]}, batch)
    assert torch.equal(method.bank.rows, expected)


def test_a_patch_comes_from_its_cell_and_every_offset_occurs() -> None:
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    images = torch.stack([rows, columns, rows * 0]).expand(400, 3, 10, 10)
    images = images + torch.arange(400.0).view(-1, 1, 1, 1) * 100
    offsets, orders = draw_puzzles(400, 9, 1, torch.Generator().manual_seed(0))
    patches = cut_patches(images, offsets, grid=3, cell=3, patch=2)
    assert patches.shape == (400, 9, 3, 2, 2)
    corner = patches[..., :2, 0, 0] - 100 * torch.arange(400.0).view(-1, 1, 1)
    cell = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0)) * 3
    assert torch.equal(corner, cell + offsets)
    # One pixel to the right and down.
    assert torch.equal(patches[..., 1, 0, 1], patches[..., 1, 0, 0] + 1)
    assert torch.equal(patches[..., 0, 1, 0], patches[..., 0, 0, 0] + 1)
    assert offsets.double().mean((0, 1)).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert torch.equal(orders.sort(1).values, torch.arange(9).expand(400, 9))
    first = torch.bincount(orders[:, 0], minlength=9) / 400
    torch.testing.assert_close(first, torch.full((9,), 1 / 9), atol=0.05, rtol=0)


def test_patches_pass_apart_from_images() -> None:
    """Nine patches for each image in one pass, and batch norm that sees no image beside them."""
    method: Any = build("pirl")
    seen: list[torch.Size] = []
    method.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    views, batch = Data("pirl").step(0)
    method.embed(views, batch)
    assert seen == [(BATCH, 3, 16, 16), (9 * BATCH, 3, 4, 4)]


def make(backbone: torch.nn.Module, views: tuple[int, ...], **settings: Any) -> PIRL:
    context = Context(
        num_images=32,
        num_classes=None,
        view_sizes=views,
        batch_size=BATCH,
        total_steps=4,
        steps_per_epoch=4,
        epochs=1,
    )
    return PIRL(PIRL.Settings(**settings), backbone, context)


def test_puzzles_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"settings\.patch: 6 px are more than a cell .* 5 px"):
        make(TinyNet(), (16, 16), patch=6)
    with pytest.raises(UserError, match="views: pirl takes exactly 2 views"):
        make(TinyNet(), (16,), patch=4)
    network = tiny_vit()
    with pytest.raises(UserError, match=r"settings\.patch: pirl passes patches of 4 px .*ResNet"):
        make(network, (16, 16), patch=4)
    assert network.training
