"""Exports load in the tool that they are for, with equal features; the card tells the rest."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard, ModelCardData, metadata_load

from tests.data.hub_server import Hub, Repository, serving
from transferbench.api import exporting
from transferbench.api.exporting import export
from transferbench.backbones.build import build_network
from transferbench.backbones.export import export_backbone
from transferbench.backbones.reference import parse_reference
from transferbench.backbones.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings
from transferbench.cli import main
from transferbench.errors import NotAtHand, UserError
from transferbench.leaderboard import record as records

TINY = NetworkSettings(name="resnet10t", args={"channels": [8, 8, 16, 16]})
SMALL = TINY.model_copy(update={"stem": "small"})
SAME = NetworkSettings(name="resnet18", padding="same")
VIT = NetworkSettings(name="vit_tiny_patch16_224", args={"depth": 2, "img_size": 32})


def a_run(folder: Path, settings: NetworkSettings, size: int = 32) -> torch.nn.Module:
    network = build_network(settings, seed=3).eval()
    export_backbone(
        folder,
        network,
        settings,
        name="byol",
        input_size=size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bilinear",
    )
    (folder / "recipe.toml").write_text('method = "byol"\n')
    return network


def run_code(code: str, folder: Path, monkeypatch) -> torch.nn.Module:
    monkeypatch.chdir(folder)
    space: dict = {}
    exec(code, space)
    return space["network"].eval()


def code_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


def same(one: torch.nn.Module, two: torch.nn.Module, size: int = 32) -> bool:
    # In float64, for the libraries multiply in different orders.
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    one, two = copy.deepcopy(one).double(), copy.deepcopy(two).double()
    with torch.inference_mode():
        return torch.allclose(one(x), two(x), atol=1e-9)


@pytest.mark.parametrize("form", ["timm", "safetensors", "hub-folder"])
@pytest.mark.parametrize(
    "settings",
    [TINY, VIT, SMALL, SAME],
    ids=["cnn", "vit", "small", "same"],
)
def test_an_export_loads_with_the_code_of_its_card(tmp_path, monkeypatch, form, settings):
    monkeypatch.chdir(tmp_path)
    network = a_run(tmp_path / "run", settings)
    done = export("run", form)
    card = (done.folder / "README.md").read_text()
    assert {path.name for path in done.folder.iterdir()} == set(done.files)
    assert same(run_code(code_of(card), tmp_path / done.folder, monkeypatch), network)
    assert "transferbench" not in code_of(card)


@pytest.mark.parametrize("name", ["resnet18", "vit_base_patch32_224"])
def test_torchvision_loads_its_export(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    args = {"img_size": 64} if name.startswith("vit") else {}
    network = a_run(tmp_path / "run", NetworkSettings(name=name, args=args), 64)
    done = export("run", "torchvision", out="out")
    card = (done.folder / "README.md").read_text()
    assert same(run_code(code_of(card), tmp_path / "out", monkeypatch), network, 64)


def test_what_torchvision_lacks_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "run", TINY)
    with pytest.raises(UserError, match="torchvision has no resnet10t with args"):
        export("run", "torchvision")
    assert not (tmp_path / "exports").exists()


def test_a_folder_for_the_hub_is_the_run_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = a_run(tmp_path / "run", TINY.model_copy(update={"stem": "small"}))
    done = export("run", "hub-folder")
    run = parse_reference("run:run", seed=0)
    hub = parse_reference(f"hub:{done.folder}", seed=0)
    assert hub.identity() == run.identity()
    assert same(hub.load("cpu").module, network)
    assert parse_reference(f"hub:{done.folder}@48", seed=0).identity() != run.identity()


def test_a_run_is_exported_at_the_size_that_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "run", TINY)
    done = export("run@48", "hub-folder", out="out")
    assert json.loads((done.folder / "config.json").read_text())["pretrained_cfg"][
        "input_size"
    ] == [
        3,
        48,
        48,
    ]
    assert 'method = "byol"' in (done.folder / "README.md").read_text()


def test_timm_itself_loads_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = a_run(tmp_path / "run", VIT)
    done = export("run", "hub-folder")
    loaded = timm.create_model(f"local-dir:{done.folder}", pretrained=True).eval()
    assert same(loaded, network)
    assert (
        loaded.pretrained_cfg["mean"] == list(IMAGENET_MEAN)
        or tuple(loaded.pretrained_cfg["mean"]) == IMAGENET_MEAN
    )
    assert loaded.pretrained_cfg["interpolation"] == "bilinear"


def test_an_interpolated_position_table_is_exported_at_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = 'random:vit_tiny_patch16_224@32?args={"depth":1,"img_size":64}'
    done = export(text, "hub-folder", out="out")
    config = json.loads((done.folder / "config.json").read_text())
    assert config["model_args"]["img_size"] == 32
    loaded = timm.create_model("local-dir:out", pretrained=True).eval()
    assert same(loaded, parse_reference(text, seed=0).load("cpu").module)


def test_the_card_tells_recipe_results_and_the_hubs_metadata(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "run", TINY)
    identity = parse_reference("run:run", seed=0).identity()
    for board in ("a", "b"):  # one job on two boards is one result
        write_record(tmp_path / "leaderboards" / board, identity, "digits", 0.8123)
    write_record(tmp_path / "leaderboards" / "a", {"digest": "other"}, "dtd", 0.5)
    assert main(["export", "run", "--to", "hub-folder", "--out", "out", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == ["model.safetensors", "config.json", "README.md"]
    assert said["results"] == 1
    card = (tmp_path / "out" / "README.md").read_text()
    data = metadata_load(tmp_path / "out" / "README.md")
    (result,) = data["model-index"][0]["results"]
    assert result["task"] == {"type": "image-classification", "name": "linear, on frozen features"}
    assert result["dataset"]["name"] == "digits"
    assert result["metrics"][0]["value"] == 81.23
    assert result["metrics"][0]["args"]["standard_error"] == 1.0
    assert data["library_name"] == "timm"
    assert "| linear | digits | top1 | 81.23 | 1.0 | 360 | 0 |" in card
    assert 'method = "byol"' in card
    assert str(tmp_path) not in card


def test_the_hub_reads_every_metric_and_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "run", TINY)
    identity = parse_reference("run:run", seed=0).identity()
    board = tmp_path / "leaderboards" / "a"
    write_record(board, identity, "digits", 0.5, protocol="finetune")
    write_record(board, identity, "dtd", 12.3456, protocol="geometry", metric="rankme")
    write_record(board, identity, "voc2007", 0.75, metric="map11")
    done = export("run", "timm", out="out")
    assert done.results == 3
    card = ModelCard.load(tmp_path / "out" / "README.md")
    # The Hub's own checks of the metadata, and what its pages will show.
    assert isinstance(card.data, ModelCardData)
    found = {r.dataset_name: r for r in card.data.eval_results}
    assert {name: (r.metric_type, r.metric_value) for name, r in found.items()} == {
        "digits": ("accuracy", 50.0),
        "dtd": ("rankme", 12.35),
        "voc2007": ("map11", 75.0),
    }
    assert found["digits"].task_name == "finetune, the whole network trained"
    assert found["dtd"].task_type == "image-feature-extraction"
    assert found["voc2007"].metric_args == {"standard_error": 1.0, "n": 360, "seed": 0}


def test_results_of_committed_boards_are_told_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "run", TINY)
    identity = parse_reference("run:run", seed=0).identity()
    packaged = tmp_path / "elsewhere" / "leaderboards"
    write_record(packaged / "small", identity, "digits", 0.5)
    monkeypatch.setattr(exporting, "packaged_folders", lambda name: [packaged])
    assert export("run", "timm", out="out").results == 1


def write_record(
    board: Path,
    identity: dict,
    dataset: str,
    value: float,
    protocol: str = "linear",
    metric: str = "top1",
) -> None:
    job = records.JobDescription(
        model=records.ModelPart(name="m", reference="run:run", identity=identity),
        dataset=records.DataPart(
            name=dataset, source="embedded", task="multiclass", metric=metric, fingerprint="f"
        ),
        protocol=records.ProtocolPart(name=protocol, protocol=protocol, version=1, parameters={}),
        seed=0,
    )
    found = records.Record(
        kind="measured",
        key=job.key,
        job=job,
        metric=metric,
        value=value,
        standard_error=0.01,
        n=360,
    )
    path = records.record_path(board, f"m-{dataset}", dataset, protocol, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found.dumps())


def test_unknown_forms_and_absent_runs_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run", "--to", "hub-foldr"]) == 2
    assert "did you mean 'hub-folder'?" in capsys.readouterr().err
    assert main(["export", "run", "--to", "timm"]) == 2
    assert "there is no run folder run" in capsys.readouterr().err
    a_run(tmp_path / "run", TINY)
    (tmp_path / "out").write_text("x")
    assert main(["export", "run", "--to", "timm", "--out", "out"]) == 2
    assert "it is a file" in capsys.readouterr().err


# The Hub itself.


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A repository of timm's layout on a stand-in server, as timm writes it."""
    network = timm.create_model("resnet10t", num_classes=7, channels=(8, 8, 16, 16)).eval()
    folder = tmp_path / "timm"
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {"channels": [8, 8, 16, 16]}
    config["pretrained_cfg"] |= {"mean": [0.5, 0.4, 0.3], "input_size": [3, 48, 48]}
    (folder / "config.json").write_text(json.dumps(config))
    return network, {path.name: path.read_bytes() for path in folder.iterdir()}


CODE = """
import json, sys
from transferbench.backbones.reference import parse_reference
from transferbench.errors import UserError
try:
    reference = parse_reference(sys.argv[1], seed=0)
    identity = reference.identity()
    heavy = sorted({"torch", "timm", "datasets"} & set(sys.modules))
    if len(sys.argv) > 2:
        import torch
        backbone = reference.load("cpu")
        with torch.inference_mode():
            torch.save(backbone.module(torch.ones(1, 3, 48, 48)), sys.argv[2])
    print(json.dumps([identity, heavy, reference.name]))
except UserError as error:
    print(json.dumps(str(error)))
"""


def ask(tmp_path: Path, hub: Hub, *arguments: str, offline: bool = False):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "TRANSFERBENCH_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout)


def test_a_model_of_the_hub_is_fetched_once_and_then_known_offline(tmp_path, published):
    network, files = published
    hub = Hub({"org/net": Repository({"a" * 40: files})})
    with serving(hub):
        identity, _, name = ask(tmp_path, hub, "hub:org/net", str(tmp_path / "features.pt"))
        with torch.inference_mode():
            expected = network.forward_head(
                network.forward_features(torch.ones(1, 3, 48, 48)), pre_logits=True
            )
        assert torch.allclose(torch.load(tmp_path / "features.pt"), expected, atol=1e-6)
        assert identity["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
        assert identity["preprocessing"]["input_size"] == 48
        assert name == f"net-{identity['digest'][:8]}"
        asked = len(hub.requests)
        again, heavy, _ = ask(tmp_path, hub, "hub:org/net")
        assert (again, heavy, len(hub.requests)) == (identity, [], asked)
        assert "neither in the Hub's cache nor to be fetched" in ask(tmp_path, hub, "hub:org/none")
        pinned = ask(tmp_path, hub, f"hub:org/net?revision={'b' * 40}")
        assert "nor to be fetched" in pinned
    assert ask(tmp_path, hub, "hub:org/net", offline=True)[0] == identity


def test_a_download_that_breaks_off_leaves_nothing_that_is_believed(tmp_path, published):
    _, files = published
    repository = Repository({"a" * 40: files}, cut={"model.safetensors"})
    hub = Hub({"org/net": repository})
    with serving(hub):
        message = ask(tmp_path, hub, "hub:org/net")
        assert "model.safetensors of 'hub:org/net' is neither" in message
        repository.cut.clear()
        assert isinstance(ask(tmp_path, hub, "hub:org/net"), list)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "it has no config.json"),
        ("{", "config.json of '.*' is not timm's"),
        ('{"model_type": "bert"}', "has no 'architecture'"),
        ('{"architecture": "resnt18"}', "unknown architecture 'resnt18'"),
        (
            '{"architecture": "resnet18", "model_args": {"num_classes": 3}}',
            "is set by transferbench",
        ),
        ('{"architecture": "resnet10t"}', "holds none of model.safetensors"),
        ('{"transferbench": {}}', "transferbench.*network|network: "),
    ],
)
def test_a_folder_that_is_not_of_timms_layout_is_told(tmp_path, config, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config)
    with pytest.raises(UserError, match=message) as caught:
        parse_reference(f"hub:{folder}", seed=0).identity()
    assert "\n" not in str(caught.value)


def test_a_name_that_is_neither_folder_nor_repository_is_not_at_hand():
    with pytest.raises(NotAtHand, match="no folder nosuch, and the Hub's names are ORG/NAME"):
        parse_reference("hub:nosuch", seed=0).identity()
    with pytest.raises(UserError, match="names no model; write hub:ORG/NAME"):
        parse_reference("hub:", seed=0)
