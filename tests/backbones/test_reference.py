"""Model references: what they name, what identifies them, what they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from transferbench.backbones.build import build_network
from transferbench.backbones.export import export_backbone, read_export
from transferbench.backbones.reference import parse_reference, random_reference, wrap_module
from transferbench.backbones.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings
from transferbench.errors import NotAtHand, UserError

TINY = NetworkSettings(name="resnet10t", args={"channels": [8, 8, 16, 16]})
TEXT = 'resnet10t@32?args={"channels":[8,8,16,16]}'
HEAVY = ("torch", "timm", "sklearn", "datasets", "pandas", "pyarrow", "matplotlib")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(build_network(TINY, seed=3).state_dict(), path)
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "byol-drawn-s0"
    export_backbone(
        folder,
        build_network(TINY, seed=3),
        TINY,
        name="byol",
        input_size=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
    )
    return folder


def args_of(path: Path) -> str:
    return f"file:{path}@{TEXT.replace('@32?', '?size=32&')}"


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = parse_reference(f"random:{TEXT}", seed=0).load("cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again = parse_reference(f"random:{TEXT}", seed=0).load("cpu")
    other = parse_reference(f"random:{TEXT}", seed=1).load("cpu")
    weight = first.module.conv1[0].weight
    assert torch.equal(weight, again.module.conv1[0].weight)
    assert not torch.equal(weight, other.module.conv1[0].weight)
    assert first.digest == again.digest != other.digest
    assert not first.module.training
    assert first.input_size == 32


def test_a_random_model_has_one_name_for_all_seeds_and_one_per_setting():
    def name(text: str, seed: int = 0) -> str:
        return parse_reference(text, seed=seed).name

    assert name("random:resnet18@32") == name("random:resnet18@32", seed=5)
    assert name("random:resnet18@32") != name("random:resnet18@48")
    assert name("random:resnet18@32") != name("random:resnet18@32?stem=small")
    assert name("random:resnet18@32").startswith("random-resnet18-")


def test_the_text_of_a_recipes_network_says_what_the_recipe_says():
    settings = NetworkSettings(
        name="resnet18", stem="small", args={"layers": [1, 1, 1, 1], "act_layer": "a&b=50%+1"}
    )
    text = random_reference(settings, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
    identity = parse_reference(text, seed=0).identity()
    assert identity["network"] == settings.model_dump(mode="json")
    assert identity["preprocessing"] == {
        "input_size": 32,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "interpolation": "bilinear",
    }


def test_small_stem_keeps_the_resolution():
    network = build_network(NetworkSettings(name="resnet18", stem="small"), seed=0)
    assert network.conv1.stride == (1, 1)
    with torch.inference_mode():
        assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape[-1] == 4
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, network.num_features)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", 224), ("mobilenetv3_small_050", 64)]
)
def test_num_features_is_the_width_of_what_comes_out(name: str, size: int):
    network = build_network(NetworkSettings(name=name), seed=0).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, network.num_features)


def test_run_and_file_of_the_same_weights_are_the_same_model(run_folder: Path):
    run = parse_reference(f"run:{run_folder}", seed=0)
    file = parse_reference(args_of(run_folder / "backbone.safetensors"), seed=4)
    assert run.identity() == file.identity()
    assert run.identity()["digest"] == read_export(run_folder).digest
    loaded = run.load("cpu")
    assert loaded.digest == run.identity()["digest"]
    assert run.name == f"byol-drawn-s0-{loaded.digest[:8]}"
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = build_network(TINY, seed=3).eval()(x)
        assert torch.equal(loaded.module(x), expected)
        assert torch.equal(file.load("cpu").module(x), expected)


@pytest.mark.parametrize("stem", ["standard", "small"])
def test_the_written_code_loads_the_export_in_plain_timm(tmp_path: Path, monkeypatch, stem):
    settings = TINY.model_copy(update={"stem": stem})
    network = build_network(settings, seed=1).eval()
    export_backbone(
        tmp_path,
        network.to(memory_format=torch.channels_last),
        settings,
        name="x",
        input_size=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
    )
    code = json.loads((tmp_path / "backbone.json").read_text())["load_with"]
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(code, space)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(space["network"].eval()(x), network(x), atol=1e-6)


def test_a_changed_weights_file_is_not_the_described_one(run_folder: Path):
    path = run_folder / "backbone.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not the file that"):
        parse_reference(f"run:{run_folder}", seed=0).identity()


def test_an_unfinished_or_absent_run_is_not_at_hand(tmp_path: Path, run_folder: Path):
    with pytest.raises(NotAtHand, match="no run folder"):
        parse_reference(f"run:{tmp_path / 'none'}", seed=0).identity()
    (run_folder / "backbone.json").unlink()
    reference = parse_reference(f"run:{run_folder}", seed=0)
    assert reference.name == "byol-drawn-s0"
    with pytest.raises(NotAtHand, match="not finished"):
        reference.load("cpu")


def test_a_broken_description_is_one_line(run_folder: Path):
    (run_folder / "backbone.json").write_text('{"name": "x"')
    with pytest.raises(UserError, match=r"backbone\.json is not the description") as caught:
        parse_reference(f"run:{run_folder}", seed=0).identity()
    assert "\n" not in str(caught.value)


def test_preprocessing_comes_from_timm_unless_it_is_said(weights: Path):
    lite = parse_reference("random:tf_efficientnet_lite0", seed=0).identity()["preprocessing"]
    assert lite == {
        "input_size": 224,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
    }
    said = parse_reference(f"{args_of(weights)}&mean=[0,0,0]&std=[1,1,1]", seed=0)
    plain = parse_reference(args_of(weights), seed=0)
    assert said.identity()["preprocessing"]["mean"] == [0.0, 0.0, 0.0]
    assert said.identity()["digest"] != plain.identity()["digest"]
    assert said.identity()["weights"] == plain.identity()["weights"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("timm:resnet10t@48", 48),
        ("timm:resnet10t", 176),
        ("random:resnet10t@48", 48),
        ("random:resnet10t@48?size=48", 48),
        ("random:resnet10t?size=64", 64),
        ("file:{path}@resnet10t@48", 48),
        ("file:{path}@resnet10t?size=64", 64),
    ],
)
def test_every_kind_takes_a_size(text: str, size: int, tmp_path: Path, monkeypatch, fresh_cache):
    import timm

    real = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: real(*a, **{**k, "pretrained": False})
    )
    path = tmp_path / "net@2.safetensors"
    network = build_network(NetworkSettings(name="resnet10t"), seed=0)
    safetensors.torch.save_file(network.state_dict(), path)
    reference = parse_reference(text.format(path=path), seed=0)
    assert reference.identity()["preprocessing"]["input_size"] == size
    assert reference.load("cpu").input_size == size


def test_a_timm_model_otherwise_than_by_default_has_a_name_of_its_own():
    texts = ("timm:resnet10t", "timm:resnet10t@48", 'timm:resnet10t?args={"layers":[1,1,1,1]}')
    names = [parse_reference(text, seed=0).name for text in texts]
    assert names[0] == "resnet10t"
    assert len(set(names)) == 3


def test_a_tag_is_written_as_timm_does_or_after_an_at():
    def told(text: str) -> tuple:
        reference = parse_reference(text, seed=0)
        return reference._network, reference._given, reference.name

    assert told("timm:resnet18@a1_in1k") == told("timm:resnet18.a1_in1k")
    assert told("timm:resnet18@a1_in1k")[2] == "resnet18.a1_in1k"
    both = "timm:resnet18@a1_in1k@64?interpolation=bilinear"
    assert told(both) == told("timm:resnet18.a1_in1k@64?interpolation=bilinear")
    assert told(both)[1] == {"input_size": 64, "interpolation": "bilinear"}
    assert told("timm:resnet18@64")[0].name == "resnet18"


def test_content_not_path_identifies_a_file(weights: Path, tmp_path: Path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    one, two = (parse_reference(args_of(path), seed=0) for path in (weights, copy))
    assert one.identity() == two.identity()
    safetensors.torch.save_file(build_network(TINY, seed=4).state_dict(), copy)
    assert one.identity() != two.identity()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet18", "'resnet18' names no model; a model is given as timm:ARCH"),
        ("tim:resnet18", "did you mean 'timm'"),
        ("random:", "names no model"),
        ("random:resnet18@big", "names no model"),
        ("random:resnet10t@0", "size: .*greater than or equal to 1"),
        ("random:resnet10t@9999", "size: .*less than or equal to 8192"),
        ("random:resnet10t@" + "9" * 5000, "names no model"),
        ("random:resnet10t@32?size=48", "gives the size twice: 32 and 48"),
        ("random:resnet10t?size=", "size: .*integer"),
        ("random:resnet10t?stem=", "stem: Input should be"),
        ('random:resnet10t@32?args={"block":"x"}', "timm cannot build 'resnet10t'"),
        ("random:vit_tiny_patch16_224@40", "images of 40 px: .* a multiple of its patches' 16 px"),
        ("random:resnt18", "did you mean .*resnet18"),
        ("random:resnet18?stm=small", "unknown option 'stm'.*did you mean 'stem'"),
        ("random:resnet18?stem", "key=value"),
        ("random:resnet18?stem=tiny", "stem: Input should be 'standard', 'small' or 'small-pad2'"),
        ("random:resnet18?std=[0,1,1]", "std: .*above 0"),
        ("random:resnet18?size=0", "greater than or equal to 1"),
        ('random:resnet18?args={"foo":1}', "timm cannot build 'resnet18'.*'foo'"),
        ('random:resnet18?args={"num_classes":3}', "'num_classes' is set by transferbench"),
        ("random:vit_tiny_patch16_224?stem=small", "has no conv1, bn1 and maxpool"),
        ("timm:resnet18.nosuch", "unknown pretrained tag 'nosuch'"),
        ("timm:resnet18@a1_in1", "unknown pretrained tag 'a1_in1'.*did you mean 'a1_in1k'"),
        ("timm:resnet18@a1_in1k@big", "names no model"),
        ("file:net.pth", "does not say the architecture"),
        ("file:net.pth@resnet18", "there is no weights file"),
        ("run:", "names no folder"),
    ],
)
def test_what_names_nothing_is_refused_in_one_line(text: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        parse_reference(text, seed=0).load("cpu")
    assert "\n" not in str(caught.value)


def test_an_unknown_device_is_refused():
    with pytest.raises(UserError, match="the device 'nosuch' cannot be used"):
        parse_reference(f"random:{TEXT}", seed=0).load("nosuch")


def test_pretrained_weights_that_cannot_be_fetched_are_not_at_hand(monkeypatch):
    import timm

    real = timm.create_model

    def offline(*args, pretrained=False, **kwargs):
        if pretrained:
            raise ConnectionError("no route\nto the hub")
        return real(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    reference = parse_reference("timm:resnet10t", seed=0)
    assert reference.name == "resnet10t"
    with pytest.raises(NotAtHand, match="neither in the hub's cache") as caught:
        reference.identity()
    assert "\n" not in str(caught.value)


def test_pretrained_weights_are_identified_by_their_values_once(fresh_cache, monkeypatch):
    import timm

    real, loads = timm.create_model, []

    def fetch(*args, pretrained=False, **kwargs):
        loads.append(pretrained)
        return real(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", fetch)
    reference = parse_reference("timm:resnet10t", seed=0)
    first = reference.identity()
    assert first == parse_reference("timm:resnet10t", seed=9).identity()
    assert loads == [True]


def test_identity_needs_no_torch_once_it_is_remembered(fresh_cache, weights: Path, run_folder):
    texts = [f"random:{TEXT}", args_of(weights), f"run:{run_folder}"]
    expected = [parse_reference(text, seed=0).identity() for text in texts]
    code = (
        "import json, sys\n"
        "from transferbench.backbones.reference import parse_reference\n"
        "found = [parse_reference(t, seed=0).identity() for t in json.loads(sys.argv[1])]\n"
        "print(json.dumps([found, sorted(set(sys.modules) & set(json.loads(sys.argv[2])))]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(texts), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    found, imported = json.loads(done.stdout)
    assert found == expected
    assert imported == []


def test_any_module_is_a_backbone_known_by_its_weights():
    def module(seed: int, act: type[torch.nn.Module] = torch.nn.ReLU) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5), act())

    one = wrap_module(module(0), input_size=4)
    assert one.digest == wrap_module(module(0), input_size=4).digest
    others = [
        wrap_module(module(1), input_size=4),
        wrap_module(module(0), input_size=5),
        wrap_module(module(0, torch.nn.Tanh), input_size=4),
        wrap_module(module(0), input_size=4, mean=(0, 0, 0)),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5
    assert one.name == f"sequential-{one.digest[:8]}"


def test_normalize_scales_and_standardises():
    backbone = wrap_module(torch.nn.Identity(), input_size=2, mean=(0.5, 0, 0), std=(0.5, 1.0, 2.0))
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(1, 2, 2, 3)
    expected = torch.tensor([-1.0, 1.0, 0.1]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.allclose(backbone.normalize(images), expected)


def test_a_run_may_be_evaluated_otherwise_than_its_recipe_says(run_folder: Path):
    plain = parse_reference(f"run:{run_folder}", seed=0)
    text = f"run:{run_folder}@48?mean=[0,0,0]&interpolation=bilinear"
    other = parse_reference(text, seed=0)
    said = other.identity()
    assert said["preprocessing"] == {
        **plain.identity()["preprocessing"],
        "input_size": 48,
        "mean": [0.0, 0.0, 0.0],
        "interpolation": "bilinear",
    }
    assert said["weights"] == plain.identity()["weights"]
    assert said["network"] == plain.identity()["network"]
    backbone = other.load("cpu")
    assert backbone.digest == said["digest"] != plain.identity()["digest"]
    assert (backbone.input_size, backbone.mean) == (48, (0, 0, 0))
    assert backbone.name == f"byol-drawn-s0-{said['digest'][:8]}"
    # A folder's own name goes before.
    expected = plain.identity()
    named = run_folder.rename(run_folder.parent / "byol@64")
    assert parse_reference(f"run:{named}", seed=0).identity() == expected
    for option, message in (("stem=small", "'stem'.*network is its own"), ("sise=3", "'sise'")):
        with pytest.raises(UserError, match=message):
            parse_reference(f"run:{named}?{option}", seed=0).identity()
