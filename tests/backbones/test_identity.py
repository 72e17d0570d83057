"""What identifies a model must not drift: finished boards hold records under these digests."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from transferbench.backbones import reference
from transferbench.backbones.build import build_network
from transferbench.backbones.export import export_backbone
from transferbench.backbones.reference import parse_reference
from transferbench.backbones.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings
from transferbench.storage import digest

TINY = NetworkSettings(name="resnet10t", args={"channels": [8, 8, 16, 16]})
ARGS = 'args={"channels":[8,8,16,16]}'


@pytest.fixture
def network() -> torch.nn.Module:
    """A network whose weights depend on no generator."""
    network = build_network(TINY, seed=0)
    ramp = {
        key: torch.arange(value.numel(), dtype=torch.float64)
        .reshape(value.shape)
        .div(value.numel())
        .to(value.dtype)
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(ramp)
    return network


def test_identities_of_released_forms_are_pinned(tmp_path: Path, network, monkeypatch):
    real = reference.version
    monkeypatch.setattr(reference, "version", lambda name: "1.0" if name == "timm" else real(name))
    file = tmp_path / "net.safetensors"
    safetensors.torch.save_file(network.state_dict(), file)
    run = tmp_path / "run"
    export_backbone(
        run,
        network,
        TINY,
        name="byol",
        input_size=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bicubic",
    )
    pinned = {
        f"random:resnet10t@32?{ARGS}": "86dca6263cc7326e",
        "random:resnet18@32?stem=small&mean=[0,0,0]": "577694958b705e90",
        f"file:{file}@resnet10t?size=32&{ARGS}": "1fac9f429490a4a8",
        f"run:{run}": "62bfd5674873850d",
    }
    found = {text: digest(parse_reference(text, seed=3).identity())[:16] for text in pinned}
    assert found == pinned
    assert parse_reference(f"run:{run}", seed=3).identity()["digest"].startswith("75ed24182c28e6fb")
