from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.conformance.bed import Data, TinyNet, build
from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.simclr_v1 import SimCLRv1


class Counting(TinyNet):
    passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(images)


def test_both_views_share_one_forward_pass() -> None:
    network = Counting()
    method = build("simclr-v1", backbone=network)
    views, batch = Data("simclr-v1").step(0)
    embeddings = method.embed(views, batch)
    assert network.passes == 1
    joined = method.projector(method.backbone(torch.cat(views)))
    torch.testing.assert_close(embeddings["z"][:, 0], joined[:8])
    torch.testing.assert_close(embeddings["z"][:, 1], joined[8:])


def test_the_head_is_the_code_s() -> None:
    head = build("simclr-v1", projector_layers=3).projector
    assert isinstance(head, nn.Sequential)
    assert [layer.bias for layer in head if isinstance(layer, nn.Linear)] == [None] * 3
    norms = [layer for layer in head if isinstance(layer, nn.BatchNorm1d)]
    assert [norm.bias.requires_grad for norm in norms] == [True, True, False]
    assert all(norm.weight.requires_grad for norm in norms)


def test_views_of_two_sizes_are_refused() -> None:
    context = Context(
        num_images=32,
        num_classes=None,
        view_sizes=(16, 8),
        batch_size=8,
        total_steps=4,
        steps_per_epoch=4,
        epochs=1,
    )
    with pytest.raises(UserError, match=r"views\.size: simclr-v1"):
        SimCLRv1(SimCLRv1.Settings(), TinyNet(), context)


def test_what_is_watched() -> None:
    method = build("simclr-v1")
    _, batch = Data("simclr-v1").step(0)
    z = torch.eye(8)[:, None].expand(8, 2, 8)
    method.loss({"z": z}, batch)
    assert float(method.logged["positive_similarity"]) == pytest.approx(1.0)
    assert float(method.logged["contrastive_top1"]) == 1.0
