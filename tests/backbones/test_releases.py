"""Published checkpoints: each format, written as its authors' code wrote it, gives its features."""

from __future__ import annotations

import argparse
import copy
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch

from tests.backbones import makers
from tests.backbones.makers import State, copy_of, linear, thin, under
from transferbench.backbones.reference import parse_reference
from transferbench.backbones.weights import take_backbone
from transferbench.errors import UserError


def moco_v1(s: State) -> dict:
    both = under("module.encoder_q.", s | linear("fc.", 128, 2048))
    both |= under("module.encoder_k.", copy_of(s) | linear("fc.", 128, 2048))
    both |= {"module.queue": torch.ones(128, 4), "module.queue_ptr": torch.zeros(1)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": both, "optimizer": {"state": {}}}


def moco_v2(s: State) -> dict:
    head = linear("fc.0.", 2048, 2048) | linear("fc.2.", 128, 2048)
    both = under("module.encoder_q.", s | head) | under("module.encoder_k.", copy_of(s) | head)
    return {"epoch": 800, "arch": "resnet50", "state_dict": both | {"module.queue": torch.ones(2)}}


def moco_v3(s: State) -> dict:
    head = linear("fc.0.", 4, 2048) | {"fc.1.running_mean": torch.ones(4)}
    both = under("module.base_encoder.", s | head)
    both |= under("module.momentum_encoder.", copy_of(s) | head) | linear(
        "module.predictor.0.", 4, 4
    )
    return {"epoch": 300, "arch": "resnet50", "state_dict": both, "scaler": {"scale": 1.0}}


def insdis(s: State) -> dict:
    model = under("module.encoder.", s) | linear("module.head.0.", 128, 2048)
    return {
        "opt": argparse.Namespace(method="InsDis"),
        "model": model,
        "contrast": {"memory": torch.ones(4, 128), "params": torch.ones(3)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{}]},
        "epoch": 200,
    }


def pirl(s: State) -> dict:
    file = insdis(s)
    file["model"] |= linear("module.head_jig.fc1.", 128, 2048)
    file["model_ema"] = under("encoder.", copy_of(s)) | linear("head.0.", 128, 2048)
    return file


def swav(s: State) -> dict:
    heads = linear("module.projection_head.0.", 4, 2048)
    return under("module.", s) | heads | {"module.prototypes.weight": torch.ones(3000, 1)}


def swav_training(s: State) -> dict:
    return {"epoch": 9, "state_dict": swav(s), "optimizer": {"state": {}}, "amp": {}}


def deepcluster_v2(s: State) -> dict:
    heads = linear("module.projection_head.0.", 4, 2048)
    prototypes = {f"module.prototypes.prototypes{i}.weight": torch.ones(3, 1) for i in range(3)}
    return under("module.", s) | heads | prototypes


def simsiam(s: State) -> dict:
    encoder = s | linear("fc.0.", 4, 2048) | linear("fc.6.", 4, 4)
    both = under("module.encoder.", encoder) | linear("module.predictor.0.", 4, 4)
    return {"epoch": 99, "arch": "resnet50", "state_dict": both, "optimizer": {}}


def barlow_twins(s: State) -> dict:
    model = under("module.backbone.", s) | linear("module.projector.0.", 4, 2048)
    return {"epoch": 1000, "model": model | {"module.bn.running_mean": torch.ones(4)}}


def twist(s: State) -> dict:
    model = under("module.backbone.", s) | linear("module.projector.0.", 4, 2048)
    return {"model": model, "backbone": s, "epoch": 1, "args": argparse.Namespace(lr=1.0)}


def twist_momentum(s: State) -> dict:
    return {**twist(copy_of(s)), "teacher": under("backbone.", s), "teacher_backbone": s}


def vissl(s: State) -> dict:
    base = {"trunk": under("_feature_blocks.", s), "heads": linear("0.clf.", 4, 4)}
    hooks = {"momentum": under("trunk._feature_blocks.", copy_of(s))}
    state = {"base_model": {"model": base, "meta": {}}, "hooks": hooks}
    return {"phase_idx": 1, "classy_state_dict": state}


def vissl_converted(s: State) -> dict:
    return {"model_state_dict": under("_feature_blocks.", s)}


def lightly(s: State) -> dict:
    both = under("backbone.", s) | under("key_backbone.", copy_of(s))
    both |= linear("projection_head.layers.0.", 4, 2048) | linear("online_classifier.", 4, 2048)
    return {"pytorch-lightning_version": "2.0", "state_dict": both, "hyper_parameters": {"lr": 1}}


def lightly_dino(s: State) -> dict:
    both = under("backbone.", s) | under("student_backbone.", copy_of(s))
    both |= linear("projection_head.0.", 4, 2048)
    return {"pytorch-lightning_version": "2.0", "state_dict": both, "epoch": 99}


def solo_learn(s: State) -> dict:
    both = under("backbone.", s) | under("momentum_backbone.", copy_of(s))
    both |= linear("projector.0.", 4, 2048) | linear("classifier.", 10, 2048)
    return {"pytorch-lightning_version": "1.9", "state_dict": both}


def solo_learn_old(s: State) -> dict:
    both = under("encoder.", s) | linear("projector.0.", 4, 2048)
    return {"pytorch-lightning_version": "1.5", "state_dict": both}


def dino(s: State) -> dict:
    return {
        "student": under("module.backbone.", copy_of(s)) | linear("module.head.mlp.0.", 4, 2048),
        "teacher": under("backbone.", s) | linear("head.mlp.0.", 4, 2048),
        "args": argparse.Namespace(arch="resnet50"),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def simclr_converted(s: State) -> dict:
    """The blocks' parts in the order of their making, under names of the converter's own."""
    variables = makers.simclr_variables(s)
    resnet: State = {}
    leaves = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}
    leaves["running_var"] = "moving_variance"
    for number in range(53):
        mark = f"_{number}" if number else ""
        kernel = torch.from_numpy(variables[f"base_model/conv2d{mark}/kernel"])
        resnet[f"net.{number}.0.weight"] = kernel.permute(3, 2, 0, 1)
        for leaf, name in leaves.items():
            value = variables[f"base_model/batch_normalization{mark}/{name}"]
            resnet[f"net.{number}.1.0.{leaf}"] = torch.from_numpy(value)
        resnet[f"net.{number}.1.0.num_batches_tracked"] = torch.tensor(0)
    return {"resnet": resnet | linear("fc.", 4, 2048), "head": linear("layers.0.", 4, 4)}


FILES: dict[Callable[[State], dict], tuple[str, str]] = {
    moco_v1: ("MoCo v1 or PCL v1", "query"),
    moco_v2: ("MoCo v2 or PCL v2", "query"),
    moco_v3: ("MoCo v3", "query"),
    insdis: ("InsDis (PyContrast)", "encoder"),
    pirl: ("PIRL or InfoMin (PyContrast)", "encoder"),
    swav: ("SwAV", "network"),
    swav_training: ("SwAV", "network"),
    deepcluster_v2: ("DeepCluster-v2 or SeLa-v2", "network"),
    simsiam: ("SimSiam", "encoder"),
    barlow_twins: ("Barlow Twins or VICReg", "backbone"),
    twist: ("TWIST", "backbone"),
    twist_momentum: ("TWIST", "teacher"),
    vissl: ("VISSL", "trunk"),
    vissl_converted: ("VISSL", "trunk"),
    lightly: ("lightly", "backbone"),
    lightly_dino: ("lightly", "teacher"),
    solo_learn: ("solo-learn", "backbone"),
    solo_learn_old: ("solo-learn", "backbone"),
    dino: ("DINO or iBOT", "teacher"),
    simclr_converted: ("SimCLR v2, converted", "base"),
}


@pytest.mark.parametrize("write", FILES, ids=lambda f: f.__name__)
def test_a_published_file_gives_its_networks_features(
    tmp_path, state50, image, features50, loaded, write
):
    path = tmp_path / "release.pth.tar"
    # The files of 2019 and 2020 are of torch's old form.
    old = write in (moco_v1, insdis, swav)
    torch.save(write(state50), path, _use_new_zipfile_serialization=not old)
    module, taken = loaded(path)
    assert (taken.release.family, taken.release.branch) == FILES[write]
    assert bool(taken.dropped) == (write is not vissl_converted)
    with torch.inference_mode():
        assert torch.allclose(module(image), features50, rtol=1e-6, atol=1e-6)
    entries = taken.state.items()
    assert sum(value.ndim == 4 for _, value in entries) == 53
    assert sum(key.endswith("running_mean") for key, _ in entries) == 53


@pytest.mark.parametrize("container", [None, "backbone", "state_dict"])
def test_plain_files_of_torchvision_barlow_twins_and_lincls_are_read(
    tmp_path, state50, image, features50, loaded, container
):
    path = tmp_path / "net.pth"
    state = state50 if container == "backbone" else state50 | linear("fc.", 1000, 2048)
    torch.save({container: state} if container else state, path)
    module, taken = loaded(path)
    assert taken.release is None
    with torch.inference_mode():
        assert torch.allclose(module(image), features50, rtol=1e-6, atol=1e-6)


def test_byols_pickle_gives_its_networks_weights(tmp_path, state50, loaded):
    path = tmp_path / "pretrain_res50x1.pkl"
    makers.byol_pickle(path, state50, thin(state50), protocol=4)
    module, taken = loaded(path)
    assert (taken.release.family, taken.release.branch) == ("BYOL", "online")
    assert taken.release.network == {"padding": "same"}
    assert all(
        torch.equal(value, state50[key])
        for key, value in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )


@pytest.mark.parametrize("protocol", [2, 5])
def test_byols_pickle_is_read_in_every_protocol_and_on_either_branch(tmp_path, state50, protocol):
    online = thin(state50)
    target = {key: value + 1 for key, value in online.items()}
    path = tmp_path / "byol.pkl"
    makers.byol_pickle(path, online, target, protocol)
    for branch, state in {None: online, "target": target}.items():
        found = take_backbone(path, branch=branch).state
        assert found.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in found.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_simclrs_tensorflow_checkpoint_gives_its_networks_weights(
    tmp_path, state50, loaded, zipped
):
    variables = makers.simclr_variables(state50)
    variables["base_model/conv2d/kernel/Momentum"] = np.ones((7, 7, 3, 64), np.float32)
    variables["head_supervised/linear_layer/dense/kernel"] = np.ones((2, 3), np.float32)
    variables["head_contrastive/nl_0/dense/kernel"] = np.ones((2, 3), np.float32)
    variables["ema_model/base_model/conv2d/kernel"] = np.ones((7, 7, 3, 64), np.float32)
    variables["global_step"] = np.array(250228, np.int64)
    shard = tmp_path / "model.ckpt-250228.data-00000-of-00001"
    path = tmp_path / "model.ckpt-250228.index"
    path.write_bytes(makers.tensorflow_index(variables, shard))
    if zipped:
        archive = tmp_path / "ResNet50_1x.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for part in (path, shard):
                file.write(part, f"ResNet50_1x/{part.name}")
        path = archive
    module, taken = loaded(path)
    assert (taken.release.family, taken.release.branch) == ("SimCLR v2", "base")
    assert all(
        torch.equal(value, state50[key])
        for key, value in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )


def test_a_reference_to_a_release_needs_nothing_but_its_architecture(
    tmp_path, state50, image, features50
):
    path = tmp_path / "moco_v2_800ep_pretrain.pth.tar"
    torch.save(moco_v2(state50), path)
    backbone = parse_reference(f"file:{path}@resnet50@64", seed=0).load("cpu")
    with torch.inference_mode():
        assert torch.allclose(backbone.module(image), features50, rtol=1e-6, atol=1e-6)
    assert backbone.name == f"moco_v2_800ep_pretrain-{backbone.digest[:8]}"
    assert backbone.notes == {
        "pooling": "avg",
        "padding": "standard",
        "format": "MoCo v2 or PCL v2",
        "branch": "query",
        "dropped": {
            "state_dict/encoder_q.fc": 4,
            "state_dict/encoder_k.conv1": 1,
            "state_dict/encoder_k.bn1": 5,
            "state_dict/encoder_k.layer1": 60,
            "state_dict/encoder_k.layer2": 78,
            "state_dict/encoder_k.layer3": 114,
            "state_dict/encoder_k.layer4": 60,
            "state_dict/encoder_k.fc": 4,
            "state_dict/queue": 1,
        },
    }
    # Another branch is another model.
    texts = [f"file:{path}@resnet50@64", f"file:{path}@resnet50@64?branch=momentum"]
    digests = [parse_reference(text, seed=0).identity()["digest"] for text in texts]
    assert digests[0] == backbone.digest != digests[1]
    with pytest.raises(UserError, match="unknown branch 'momentun'"):
        parse_reference(f"file:{path}@resnet50?branch=momentun", seed=0).identity()


VIT = {"depth": 2, "img_size": 32, "embed_dim": 192, "num_heads": 3}


def small_vit(**changes) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**VIT, **changes})
        torch.nn.init.normal_(network.pos_embed)
        torch.nn.init.normal_(network.cls_token)
    return network.eval()


def decoder(width: int) -> State:
    return {
        "mask_token": torch.ones(1, 1, width),
        "decoder_pos_embed": torch.ones(1, 5, width),
        **linear("decoder_embed.", width, 192),
        **linear("decoder_blocks.0.mlp.fc1.", width, width),
        **linear("decoder_norm.", width, 1),
        **linear("decoder_pred.", 768, width),
    }


VITS: dict[str, Callable[[State], dict]] = {
    "MAE": lambda s: {"model": s},
    "MAE with decoder": lambda s: {"model": s | decoder(8), "args": argparse.Namespace(lr=1)},
    "iBOT": lambda s: {"state_dict": s | {"masked_embed": torch.zeros(1, 192)}},
    "DINO": lambda s: {
        "student": under("module.backbone.", copy_of(s)),
        "teacher": under("backbone.", s) | linear("head.mlp.0.", 4, 192),
    },
    "lightly": lambda s: {
        "pytorch-lightning_version": "2",
        "state_dict": under("backbone.vit.", s) | linear("projection_head.0.", 4, 192),
    },
    "MoCo v3": lambda s: {
        "state_dict": under("module.base_encoder.", s | linear("head.0.", 4, 192))
        | under("module.momentum_encoder.", copy_of(s))
    },
}


@pytest.mark.parametrize("kind", VITS)
def test_a_published_vit_gives_its_features_under_imagenets_normalisation(tmp_path, kind):
    network = small_vit()
    path = tmp_path / "vit.pth"
    torch.save(VITS[kind](network.state_dict()), path)
    text = f'file:{path}@vit_tiny_patch16_224@32?args={{"depth":2,"img_size":32}}'
    backbone = parse_reference(text, seed=0).load("cpu")
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(backbone.module(x), network(x), atol=1e-6)
    # timm's plain ViTs say 0.5 for all three.
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert backbone.notes["format"].startswith(kind.split()[0])
    assert backbone.notes["pooling"] == "token"


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_is_renamed_as_timm_has_it(tmp_path, registers):
    arch = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    args = {"depth": 1, "img_size": 28}
    network = timm.create_model(arch, num_classes=0, **args).eval()
    torch.nn.init.normal_(network.cls_token)
    state = dict(network.state_dict())
    released = {**state, "mask_token": torch.zeros(1, 384)}
    if registers:
        released["register_tokens"] = released.pop("reg_token")
        place = torch.randn(1, 1, 384)
        released["cls_token"] = state["cls_token"] - place
        released["pos_embed"] = torch.cat([place, state["pos_embed"]], dim=1)
    path = tmp_path / "dinov2.pth"
    torch.save(released, path)
    text = f'file:{path}@{arch}@28?args={{"depth":1,"img_size":28}}'
    backbone = parse_reference(text, seed=0).load("cpu")
    x = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        assert torch.allclose(backbone.module(x), network(x), atol=1e-5)
    assert backbone.notes["format"] == "DINOv2"


def test_what_only_looks_like_a_release_is_refused(tmp_path, state50):
    path = tmp_path / "swav.pth.tar"
    file = swav(state50)
    del file["module.layer4.2.conv3.weight"]
    torch.save(file, path)
    with pytest.raises(
        UserError, match=r"1 of 318 names are missing \(layer4.2.conv3.weight\)"
    ) as c:
        parse_reference(f"file:{path}@resnet50@64", seed=0).load("cpu")
    assert "52 convolutions and 53 batch norms instead of 53 and 53" in str(c.value)
    torch.save({"resnet": under("net.", copy_of(state50)), "head": linear("a.", 2, 2)}, path)
    assert take_backbone(path).release.family == "SimCLR v2, converted"
    torch.save({"resnet": linear("net.", 2, 2), "head": linear("a.", 2, 2)}, path)
    with pytest.raises(UserError, match="0 convolutions and 1 batch norms is no plain ResNet"):
        take_backbone(path)


def simclr_v1_converted(s: State) -> dict:
    """tonylins/simclr-converter's: torchvision's names, each block's shortcut before the rest."""
    first = {key: "downsample" not in key for key in s}
    blocks = {key: ".".join(key.split(".")[:2]) if "layer" in key else "" for key in s}
    order = list(dict.fromkeys(blocks.values()))
    keys = sorted(s, key=lambda key: (order.index(blocks[key]), first[key]))
    return {"state_dict": {key: s[key] for key in keys} | linear("fc.", 1000, 2048)}


def test_simclrs_first_release_is_known_when_converted_too(tmp_path, state50, loaded):
    path = tmp_path / "resnet50-1x.pth"
    torch.save(simclr_v1_converted(state50), path)
    identity = parse_reference(f"file:{path}@resnet50", seed=0).identity()
    assert identity["preprocessing"]["mean"] == [0.0, 0.0, 0.0]
    assert identity["network"]["padding"] == "same-pool"
    module, taken = loaded(path)
    assert (taken.release.family, taken.release.branch) == ("SimCLR v1, converted", "base")
    assert all(torch.equal(value, state50[key]) for key, value in module.state_dict().items())
    # torchvision's own order is not that one.
    torch.save({"state_dict": state50}, path)
    assert take_backbone(path).release is None


@pytest.mark.parametrize("padding", ["", "?padding=standard"])
@pytest.mark.parametrize("kind", ["BYOL", "SimCLR v1"])
def test_byol_and_simclr_give_the_features_of_their_own_network(
    tmp_path, resnet50, state50, image, features50, kind, padding
):
    if kind == "BYOL":
        path = tmp_path / "byol.pkl"
        makers.byol_pickle(path, state50, thin(state50), protocol=4)
    else:
        path = tmp_path / "model.index"
        shard = tmp_path / "model.data-00000-of-00001"
        path.write_bytes(makers.tensorflow_index(makers.simclr_variables(state50), shard))
    backbone = parse_reference(f"file:{path}@resnet50@64{padding}", seed=0).load("cpu")
    expected = features50
    if not padding:
        network = copy.deepcopy(resnet50)
        for module in network.modules():
            conv = isinstance(module, torch.nn.Conv2d) and kind == "BYOL"
            if isinstance(module, torch.nn.MaxPool2d) or (conv and module.stride == (2, 2)):
                module.padding = 0
                module.register_forward_pre_hook(makers.pad_as_tensorflow)
        with torch.inference_mode():
            expected = network(image)
        assert not torch.allclose(expected, features50, atol=1e-2)
    assert backbone.mean == ((0.485, 0.456, 0.406) if kind == "BYOL" else (0, 0, 0))
    with torch.inference_mode():
        assert torch.allclose(backbone.module(image), expected, rtol=1e-5, atol=1e-5)
    for file in tmp_path.iterdir():
        file.unlink()


def moco_of_pycontrast(s: State) -> dict:
    file = insdis(s)
    file["model_ema"] = under("encoder.", copy_of(s)) | linear("head.0.", 128, 2048)
    return file


def test_pycontrasts_own_moco_is_not_called_facebooks(tmp_path, state50):
    path = tmp_path / "MoCo.pth"
    torch.save(moco_of_pycontrast(copy_of(state50)), path)
    release = take_backbone(path).release
    assert release.family == "InsDis or a rerun of MoCo (PyContrast)"
    assert list(release.branches) == ["momentum"]


def test_what_is_left_out_is_told_in_few_words(tmp_path, state50):
    path = tmp_path / "byol.pkl"
    makers.byol_pickle(path, thin(state50), thin(state50))
    assert take_backbone(path).dropped == {
        "experiment_state/0/projector": 2,
        "experiment_state/0/predictor": 2,
        "experiment_state/0/classifier": 2,
        "experiment_state/1/res_net50": 159,
        "experiment_state/3/res_net50": 318,
        "step": 1,
        "rng": 1,
    }
    path = tmp_path / "model.index"
    variables = makers.simclr_variables(thin(state50))
    copies = {f"ema_model/{name}": value for name, value in variables.items()}
    heads = {"head_contrastive/nl_0/dense/kernel": np.ones((2, 3), np.float32)}
    shard = tmp_path / "model.data-00000-of-00001"
    path.write_bytes(makers.tensorflow_index({**variables, **copies, **heads}, shard))
    assert take_backbone(path).dropped == {
        "ema_model/base_model/batch_normalization": 212,
        "ema_model/base_model/conv2d": 53,
        "head_contrastive/nl_0/dense": 1,
    }
    path = tmp_path / "moco.pth.tar"
    file = moco_v1(copy_of(state50))
    file["optimizer"]["state"] = {i: {"momentum_buffer": torch.ones(1)} for i in range(161)}
    torch.save(file, path)
    assert take_backbone(path).dropped["optimizer/state"] == 161
