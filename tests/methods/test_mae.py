from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from tests.conformance.bed import BATCH, Data, TinyNet, build, optimizer_of, tiny_vit, train_step
from transferbench.backbones.build import build_network
from transferbench.backbones.export import WEIGHTS, export_backbone
from transferbench.backbones.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings
from transferbench.errors import UserError
from transferbench.methods.mae import MAE, patchify, random_mask, unshuffle
from transferbench.methods.parts.vit import encode_visible, pool


def vit(**options: Any) -> VisionTransformer:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return VisionTransformer(**{**sizes, "num_classes": 0, **options})


def make(**settings: Any) -> MAE:
    method = build("mae", **settings)
    assert isinstance(method, MAE)
    return method


def test_hidden_pixels_do_not_reach_the_predictions() -> None:
    method, data = make().eval(), Data("mae")
    (images,), batch = data.step(0)
    chance = batch.generator.get_state()
    first = method.embed((images,), batch)
    patches = patchify(images, (4, 4)).clone()
    patches[first["hidden"]] = 7.0
    changed = patches.unflatten(1, (4, 4)).unflatten(3, (4, 4, 3)).permute(0, 5, 1, 3, 2, 4)
    batch.generator.set_state(chance)
    second = method.embed((changed.reshape(images.shape),), batch)
    assert torch.equal(second["hidden"], first["hidden"])
    torch.testing.assert_close(second["predictions"], first["predictions"])
    assert not torch.equal(second["patches"], first["patches"])


def test_three_quarters_are_hidden_and_the_encoder_sees_the_rest_alone() -> None:
    method, data = make(), Data("mae")
    seen: list[torch.Size] = []
    method.vit.blocks.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    views, batch = data.step(0)
    hidden = method.embed(views, batch)["hidden"]
    assert seen == [(BATCH, 1 + 4, 16)]
    assert hidden.sum(1).tolist() == [12] * BATCH
    assert len({tuple(row) for row in hidden.tolist()}) > 1


def test_each_step_draws_other_masks_from_the_generator_alone() -> None:
    method, data = make(), Data("mae")
    views, batch = data.step(0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (method.embed(views, batch)["hidden"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_visible_token_returns_to_its_place() -> None:
    noise = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
    keep, restore, hidden = random_mask(noise, 0.5)
    positions = torch.arange(9.0).expand(5, 9)[..., None]
    kept = positions.gather(1, keep[..., None])
    restored = unshuffle(kept, torch.tensor([-1.0]), restore)[..., 0]
    assert torch.equal(restored, positions[..., 0].masked_fill(hidden, -1))


def test_nothing_hidden_is_the_network_s_own_forward_pass() -> None:
    for options in ({}, {"global_pool": "avg"}, {"global_pool": "avg", "reg_tokens": 2}):
        network = vit(**options).eval()
        images = torch.randn(2, 3, 16, 16)
        tokens = encode_visible(network, images, torch.arange(16).expand(2, 16))
        torch.testing.assert_close(pool(network, tokens), network(images))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"reg_tokens": 2, "no_embed_class": True},
    ],
)
def test_class_token_or_mean_every_trained_weight_is_trained(options: dict[str, Any]) -> None:
    method, data = build("mae", backbone=vit(**options)), Data("mae")
    views, batch = data.step(0)
    method(views, batch).backward()
    untrained = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not untrained


def test_positions_do_not_move_and_weight_decay_spares_one_dimensional_tensors_alone() -> None:
    method, data = make(), Data("mae")
    before = method.vit.pos_embed.clone()
    optimizer = optimizer_of(method)
    for step in range(3):
        train_step(method, optimizer, data, step)
    assert torch.equal(method.vit.pos_embed, before)
    weights = {id(p) for p in method.parameter_groups()["weights"]}
    assert {id(method.vit.cls_token), id(method.decoder.mask_token)} <= weights


def test_raw_pixels_are_the_target_where_asked_for() -> None:
    views, batch = Data("mae").step(0)
    embeddings = dict(make().embed(views, batch))
    embeddings["predictions"] = embeddings["patches"]
    assert float(make(normalize_targets=False).loss(embeddings, batch)) == 0
    assert float(make().loss(embeddings, batch)) > 0.01


def test_the_decoder_is_no_part_of_the_exported_backbone(tmp_path: Path) -> None:
    """Plain timm gives the same features, from positions that lie in the weights."""
    settings = NetworkSettings(
        name="vit_tiny_patch16_224",
        args={
            "patch_size": 4,
            "img_size": 16,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "global_pool": "avg",
            "fc_norm": False,
        },
    )
    method, data = build("mae", backbone=build_network(settings, seed=0)), Data("mae")
    train_step(method, optimizer_of(method), data, 0)
    export_backbone(
        tmp_path,
        method.backbone,
        settings,
        name="mae",
        input_size=16,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
    )
    weights = load_file(tmp_path / WEIGHTS)
    assert not any("decoder" in name or "mask_token" in name for name in weights)
    fresh = timm.create_model(settings.name, num_classes=0, **settings.args)
    fresh.load_state_dict(weights)
    images = data.images[:4]
    assert torch.equal(fresh.eval()(images), method.backbone.eval()(images))


def test_what_cannot_be_masked_is_refused() -> None:
    with pytest.raises(UserError, match=r"backbone\.name: mae needs a timm .* not a TinyNet"):
        build("mae", backbone=TinyNet())
    with pytest.raises(UserError, match=r"backbone\.name: mae needs a timm .* not a ResNet"):
        build("mae", backbone=timm.create_model("resnet18", num_classes=0))
    with pytest.raises(UserError, match=r"backbone\.args\.global_pool"):
        build("mae", backbone=vit(global_pool="map"))
    with pytest.raises(UserError, match=r"backbone\.args\.embed_dim: .* multiple of 4, not 18"):
        build("mae", backbone=vit(embed_dim=18))
    with pytest.raises(UserError, match=r"settings\.mask_ratio: 0\.95 keeps none of .* 16 patches"):
        build("mae", mask_ratio=0.95)
    with pytest.raises(UserError, match=r"settings\.decoder_heads: 3 must divide"):
        build("mae", decoder_heads=3)
    assert build("mae", backbone=tiny_vit())
