from __future__ import annotations

import math
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

from tests.conformance.bed import STEPS, Data, build, optimizer_of, tiny_vit, train_step
from transferbench.errors import UserError
from transferbench.methods.parts.positions import sincos_positions

VIT = "moco-v3:vit"


def layers(head: nn.Module) -> list[str]:
    short = {"Linear": "linear", "BatchNorm1d": "norm", "ReLU": "relu"}
    names = [short[type(layer).__name__] for layer in head.children()]
    last = list(head.children())[-1]
    plain = isinstance(last, nn.BatchNorm1d) and not last.affine
    return [*names[:-1], "plain norm"] if plain else names


def test_the_heads_of_a_resnet_and_of_a_vit() -> None:
    inner = ["linear", "norm", "relu"]
    resnet, vit = build("moco-v3"), build(VIT)
    assert layers(resnet.projector) == [*inner, "linear", "plain norm"]
    assert layers(resnet.predictor) == [*inner, "linear"]
    assert layers(vit.projector) == [*inner, *inner, "linear", "plain norm"]
    assert layers(vit.predictor) == [*inner, "linear", "plain norm"]
    for method in (resnet, vit):
        linears = [m for head in (method.projector, method.predictor) for m in head]
        assert all(m.bias is None for m in linears if isinstance(m, nn.Linear))


def test_the_key_network_moves_before_the_keys_are_computed() -> None:
    method, data = build("moco-v3", momentum=0.5), Data("moco-v3")
    before = method.projector[0].weight.detach().clone()
    train_step(method, optimizer_of(method), data, 0)
    assert torch.equal(method.key_projector[0].weight, before)
    views, batch = data.step(1)
    method.before_step(batch)
    m = method.momentum(batch)
    expected = m * before + (1 - m) * method.projector[0].weight.detach()
    torch.testing.assert_close(method.key_projector[0].weight, expected)
    with torch.no_grad():
        keys = method.embed(views, batch)["keys"]
        again = method.key_projector(method.key_backbone(views[1]))
    torch.testing.assert_close(keys[:, 1], again)


def test_the_momentum_rises_to_one_within_epochs() -> None:
    method, data = build("moco-v3", momentum=0.9), Data("moco-v3")
    values = [method.momentum(data.step(step)[1]) for step in range(STEPS + 1)]
    assert values[0] == pytest.approx(0.9)
    assert values[STEPS // 2] == pytest.approx(0.95)
    assert values[STEPS] == pytest.approx(1.0)
    assert all(earlier < later for earlier, later in pairwise(values))


def test_queries_find_the_other_view_s_key_and_keys_are_constant() -> None:
    method = build("moco-v3", temperature=0.05)
    _, batch = Data("moco-v3").step(0)
    q = torch.randn(8, 2, 16, requires_grad=True)
    keys = q.detach().flip(1).clone().requires_grad_()
    loss = method.loss({"queries": q, "keys": keys}, batch)
    assert loss.item() < 0.05
    assert method.logged["contrastive_top1"] == 1
    loss.backward()  # type: ignore[no-untyped-call]
    assert keys.grad is None
    assert method.loss({"queries": q, "keys": q}, batch).item() > 0.1


def test_a_vit_s_patch_embedding_and_positions_stay_as_they_are() -> None:
    method, data = build(VIT), Data(VIT)
    vit = method.backbone
    before = vit.patch_embed.proj.weight.clone()
    optimizer = optimizer_of(method)
    for step in range(3):
        train_step(method, optimizer, data, step)
    assert torch.equal(vit.patch_embed.proj.weight, before)
    codes = sincos_positions(4, 4, 16, first="row", prefix=1)
    torch.testing.assert_close(vit.pos_embed[0], codes.float())
    assert not vit.patch_embed.proj.bias.any()
    trained = build(VIT, freeze_patch_embedding=False).backbone.patch_embed
    assert all(p.requires_grad for p in trained.parameters())


def test_a_vit_s_weights_are_drawn_as_in_the_official_code() -> None:
    vit = build(VIT).backbone
    block = vit.blocks[0]
    largest = {
        math.sqrt(6 / (3 * 4 * 4 + 16)): vit.patch_embed.proj.weight,
        math.sqrt(6 / (2 * 16)): block.attn.qkv.weight,
        math.sqrt(6 / (16 + 64)): block.mlp.fc1.weight,
    }
    for bound, weight in largest.items():
        assert 0.9 * bound < weight.abs().max() <= bound
    assert not block.attn.qkv.bias.any()
    assert vit.cls_token.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["convnext_atto", "mixer_s32_224"])
def test_networks_of_another_kind_are_refused(name: str) -> None:
    network = timm.create_model(name, num_classes=0)
    with pytest.raises(UserError, match=r"backbone\.name: moco-v3 knows networks with batch norm"):
        build("moco-v3", backbone=network)


def test_a_vit_without_a_pooled_token_is_refused() -> None:
    network = tiny_vit()
    network.pos_embed = None
    with pytest.raises(UserError, match="absolute positions"):
        build(VIT, backbone=network)
