"""What loads without complaint and gives plausible but wrong features, each closed."""

from __future__ import annotations

import hashlib
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision

from tests.backbones import makers
from tests.backbones.makers import copy_of, linear, thin, under
from transferbench.backbones import notes
from transferbench.backbones.build import build_network, changes_as_code
from transferbench.backbones.reference import parse_reference
from transferbench.backbones.settings import NetworkSettings
from transferbench.backbones.weights import load_weights, take_backbone
from transferbench.errors import UserError


@pytest.mark.parametrize("padding", ["same", "same-pool"])
def test_padding_is_tensorflows(state50, image, padding):
    reference = torchvision.models.resnet50()
    reference.fc = torch.nn.Identity()
    reference.load_state_dict(state50)
    for module in reference.eval().modules():
        conv = isinstance(module, torch.nn.Conv2d) and padding == "same"
        if isinstance(module, torch.nn.MaxPool2d) or (conv and module.stride == (2, 2)):
            module.padding = 0
            module.register_forward_pre_hook(makers.pad_as_tensorflow)
    network = build_network(NetworkSettings(name="resnet50", padding=padding), seed=0).eval()
    network.load_state_dict(state50)
    space: dict = {"torch": torch, "network": timm.create_model("resnet50", num_classes=0)}
    exec(changes_as_code(NetworkSettings(name="resnet50", padding=padding)), space)
    space["network"].load_state_dict(state50)
    with torch.inference_mode():
        expected = reference(image)
        assert torch.allclose(network(image), expected, atol=1e-5)
        assert torch.allclose(space["network"].eval()(image), expected, atol=1e-5)
        plain = build_network(NetworkSettings(name="resnet50"), seed=0).eval()
        plain.load_state_dict(state50)
        assert not torch.allclose(plain(image), expected, atol=1e-2)


def test_byol_pads_as_trained_unless_the_papers_padding_is_asked_for(tmp_path, state50):
    path = tmp_path / "byol.pkl"
    makers.byol_pickle(path, thin(state50), thin(state50), protocol=4)
    right = parse_reference(f"file:{path}@resnet50", seed=0).identity()
    paper = parse_reference(f"file:{path}@resnet50?padding=standard", seed=0).identity()
    assert right["network"]["padding"] == "same"
    assert "padding" not in paper["network"]
    assert right["digest"] != paper["digest"]


def test_simclr_is_not_normalised_and_pools_as_trained(tmp_path, state50):
    shard = tmp_path / "model.data-00000-of-00001"
    path = tmp_path / "model.index"
    variables = makers.simclr_variables(thin(state50))
    path.write_bytes(makers.tensorflow_index(variables, shard))
    identity = parse_reference(f"file:{path}@resnet50", seed=0).identity()
    assert identity["preprocessing"]["mean"] == [0.0, 0.0, 0.0]
    assert identity["preprocessing"]["std"] == [1.0, 1.0, 1.0]
    assert identity["network"]["padding"] == "same-pool"
    # The weights lie in the other file.
    whole = bytearray(shard.read_bytes())
    whole[0] ^= 1
    shard.write_bytes(whole)
    assert parse_reference(f"file:{path}@resnet50", seed=0).identity() != identity
    shard.unlink()
    with pytest.raises(UserError, match=r"model.data-00000-of-00001 is not beside it"):
        parse_reference(f"file:{path}@resnet50", seed=0).load("cpu")


ARGS = '?args={"depth":1,"img_size":32}'


def test_moco_v3s_small_vit_has_twelve_heads(tmp_path):
    network = timm.create_model(
        "vit_small_patch16_224", num_classes=0, depth=1, img_size=32, num_heads=12
    ).eval()
    torch.nn.init.normal_(network.pos_embed)
    torch.nn.init.normal_(network.blocks[0].attn.qkv.weight)
    path = tmp_path / "vit-s-300ep.pth.tar"
    state = network.state_dict()
    both = under("module.base_encoder.", state) | under("module.momentum_encoder.", copy_of(state))
    torch.save({"arch": "vit_small", "state_dict": both}, path)
    backbone = parse_reference(f"file:{path}@vit_small_patch16_224@32{ARGS}", seed=0).load("cpu")
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(backbone.module(x), network(x), atol=1e-5)
        six = timm.create_model("vit_small_patch16_224", num_classes=0, depth=1, img_size=32).eval()
        six.load_state_dict(state)
        assert not torch.allclose(six(x), network(x), atol=1e-2)
    # It is stored, never drawn again.
    assert torch.equal(backbone.module.pos_embed, state["pos_embed"])


def test_a_position_table_is_interpolated_for_other_sizes_and_never_guessed(tmp_path):
    settings = NetworkSettings(name="vit_tiny_patch16_224", args={"depth": 1, "img_size": 64})
    state = build_network(settings, seed=0).state_dict()
    path = tmp_path / "vit.pth"
    torch.save({"model": state}, path)
    text = f"file:{path}@vit_tiny_patch16_224"
    with pytest.raises(UserError, match=r"images of 64 px: write \?args=\{\"img_size\":64\}"):
        parse_reference(f'{text}@32?args={{"depth":1,"img_size":32}}', seed=0).load("cpu")
    backbone = parse_reference(f'{text}@32?args={{"depth":1,"img_size":64}}', seed=0).load("cpu")
    assert backbone.module.pos_embed.shape == (1, 5, 192)
    corner = state["pos_embed"][0, 1:].reshape(4, 4, 192)[:2, :2].mean((0, 1))
    assert torch.cosine_similarity(backbone.module.pos_embed[0, 1], corner, dim=0) > 0.9
    with torch.inference_mode():
        assert backbone.module(torch.zeros(1, 3, 32, 32)).shape == (1, 192)


def test_pooling_is_chosen_and_recorded(tmp_path):
    text = 'random:vit_tiny_patch16_224@32?args={"depth":1,"img_size":32}'
    token, average = (parse_reference(t, seed=0) for t in (text, f"{text}&pool=avg"))
    assert token.load("cpu").notes["pooling"] == "token"
    assert average.load("cpu").notes["pooling"] == "avg"
    assert average.identity()["network"]["args"]["global_pool"] == "avg"
    assert token.identity()["digest"] != average.identity()["digest"]
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        network = token.load("cpu").module
        expected = network.forward_features(x)[:, 1:].mean(1)
        assert torch.allclose(average.load("cpu").module(x), expected, atol=1e-6)
    assert parse_reference("random:resnet10t@32", seed=0).load("cpu").notes["pooling"] == "avg"
    with pytest.raises(UserError, match="unknown pool 'tokn'"):
        parse_reference(f"{text}&pool=tokn", seed=0)


SMALL = NetworkSettings(name="resnet10t", args={"channels": [8, 8, 16, 16], "stem_type": ""})
TEXT = '@resnet10t@32?args={"channels":[8,8,16,16],"stem_type":""}'


@pytest.fixture
def state():
    return build_network(SMALL, seed=7).state_dict()


def load(path, text=TEXT):
    return parse_reference(f"file:{path}{text}", seed=0).load("cpu").module


@pytest.mark.parametrize("channels", [1, 2])
def test_stems_for_sobel_and_lab_images_are_refused(tmp_path, state, channels):
    path = tmp_path / "net.pth"
    torch.save(state | {"conv1.weight": torch.zeros(64, channels, 7, 7)}, path)
    with pytest.raises(UserError, match=f"takes {channels} channels instead of 3: .* cannot take"):
        load(path)


def test_a_stem_for_small_images_is_named(tmp_path, state):
    path = tmp_path / "net.pth"
    small = state | {"conv1.weight": torch.randn(64, 3, 3, 3)}
    torch.save(small, path)
    with pytest.raises(UserError, match=r"write \?stem=small, or \?stem=small-pad2"):
        load(path)
    torch.save(state, path)
    with pytest.raises(UserError, match=r"the standard stem; leave out \?stem="):
        load(path, f"{TEXT}&stem=small")


def test_solo_learns_networks_for_cifar_pad_by_two(tmp_path, state):
    small = under("backbone.", state | {"conv1.weight": torch.randn(64, 3, 3, 3)})
    path = tmp_path / "cifar.ckpt"
    content = {"state_dict": small | linear("projector.0.", 2, 2)}
    torch.save({**content, "pytorch-lightning_version": "1.9"}, path)
    module = load(path)
    assert (module.conv1.padding, module.conv1.stride) == ((2, 2), (1, 1))
    assert isinstance(module.maxpool, torch.nn.Identity)
    # What the user says goes before.
    assert load(path, f"{TEXT}&stem=small").conv1.padding == (1, 1)


def test_a_wide_network_is_named(tmp_path, state50):
    path = tmp_path / "wide.pth"
    wide = {"conv1.weight": torch.zeros(128, 3, 7, 7), "bn1.weight": torch.zeros(128)}
    torch.save(wide, path)
    with pytest.raises(UserError, match="a ResNet 2 times as wide, which timm lacks"):
        load(path)


@pytest.mark.parametrize("prefix", ["module._orig_mod.", "_orig_mod.module.", "_orig_mod."])
def test_what_wraps_a_network_comes_off_in_any_order(tmp_path, state, prefix):
    path = tmp_path / "net.pth"
    torch.save(under(prefix, state), path)
    assert all(torch.equal(v, state[k]) for k, v in load(path).state_dict().items())
    torch.save(state | under(prefix, state), path)
    with pytest.raises(UserError, match="twice, with and without the prefix"):
        load(path)


def test_old_files_lack_counters_and_may_be_half_precise(tmp_path, state):
    path = tmp_path / "net.pth"
    kept = {k: v.half() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": under("module.encoder_q.", kept)}, path)
    module = load(path)
    assert module.bn1.num_batches_tracked == 0
    assert module.conv1.weight.dtype == torch.float32


def test_swavs_padding_by_a_layer_of_its_own_is_ours(state50, image):
    weight = state50["conv1.weight"]
    assert torch.allclose(
        F.conv2d(F.pad(image, (1, 1, 1, 1)), weight, stride=2, padding=2),
        F.conv2d(image, weight, stride=2, padding=3),
        atol=1e-5,
    )


def test_torchvisions_second_weights_are_told_from_the_papers(tmp_path, state, monkeypatch):
    path = tmp_path / "resnet50.pth"
    torch.save(state, path)
    mark = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(notes._TORCHVISION, mark, notes._TORCHVISION["0676ba61"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path)
    monkeypatch.setitem(notes._TORCHVISION, mark, notes._TORCHVISION["11ad3fa6"])
    with pytest.warns(UserWarning, match=r"V2 \(80.9 %.*is V1"):
        load(path)


def test_a_bare_vit_that_does_not_say_its_normalisation_is_warned_about(tmp_path):
    settings = NetworkSettings(name="vit_tiny_patch16_224", args={"depth": 1, "img_size": 32})
    path = tmp_path / "dino.pth"
    torch.save(build_network(settings, seed=0).state_dict(), path)
    text = f"@vit_tiny_patch16_224@32{ARGS}"
    with pytest.warns(UserWarning, match="does not say how its images were normalised"):
        load(path, text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, f"{text}&mean=[0.485,0.456,0.406]&std=[0.229,0.224,0.225]")
        load(path, f"{text}&mean=[0.5,0.5,0.5]")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, state, value):
    path = tmp_path / "net.pth"
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, path)
    with pytest.raises(
        UserError, match=r"not finite in 1 of \d+ entries \(layer1.0.conv1.weight\)"
    ):
        load(path)


def test_a_file_of_constants_is_refused(tmp_path, state):
    path = tmp_path / "net.pth"
    torch.save({k: torch.zeros_like(v) for k, v in state.items()}, path)
    with pytest.raises(UserError, match="one and the same number in each of its"):
        load(path)


def test_another_architecture_is_named(tmp_path, state50):
    path = tmp_path / "net.pth"
    torch.save(copy_of(state50), path)
    network = build_network(NetworkSettings(name="resnet18"), seed=0)
    state = take_backbone(path).state
    with pytest.raises(UserError, match="it looks like resnet50: write @resnet50") as caught:
        load_weights(network, state, path=path, name="resnet18")
    assert "53 convolutions and 53 batch norms instead of 20 and 20" in str(caught.value)


def test_a_bare_small_vit_with_a_fixed_position_table_may_have_twelve_heads(tmp_path):
    args = {"depth": 1, "img_size": 32}
    network = timm.create_model("vit_small_patch16_224", num_classes=0, **args)
    state = network.state_dict()
    path = tmp_path / "vit-s.pth"
    mean = "&mean=[0.485,0.456,0.406]&std=[0.229,0.224,0.225]"
    text = f"@vit_small_patch16_224@32{ARGS}{mean}"
    torch.save(state, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, text)
    # MoCo v3's is of sines and cosines, and zero at the class token.
    state["pos_embed"][:, 0] = 0
    torch.save(state, path)
    with pytest.warns(UserWarning, match=r'12 heads.*write \?args=\{"num_heads":12\}'):
        load(path, text)
    twelve = '?args={"depth":1,"img_size":32,"num_heads":12}'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, f"@vit_small_patch16_224@32{twelve}{mean}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("simclr-v1.pth", r"SimCLR.*write \?padding=same-pool&mean=\[0,0,0\]&std=\[1,1,1\]"),
        ("byol.pth", r"BYOL.*write \?padding=same"),
    ],
)
def test_plain_files_named_after_what_pads_otherwise_are_warned_about(tmp_path, state, name, said):
    path = tmp_path / name
    torch.save(state, path)
    with pytest.warns(UserWarning, match=said):
        load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, f"{TEXT}&padding=standard&mean=[0,0,0]&std=[1,1,1]")
