"""One ResNet-50 for all tests of weights files: building and writing it is what takes time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from transferbench.backbones.weights import Taken, load_weights, take_backbone


@pytest.fixture(scope="session")
def resnet50() -> torch.nn.Module:
    """torchvision's, without classifier, with running statistics that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.resnet50()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.0)
                torch.nn.init.normal_(module.bias, std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
    network.fc = torch.nn.Identity()
    return network.eval()


@pytest.fixture(scope="session")
def state50(resnet50: torch.nn.Module) -> dict[str, torch.Tensor]:
    return resnet50.state_dict()


@pytest.fixture(scope="session")
def image() -> torch.Tensor:
    """One normalised image (1, 3, 64, 64)."""
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def features50(resnet50: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return resnet50(image)


@pytest.fixture(scope="session")
def timm50() -> torch.nn.Module:
    """timm's ResNet-50, which each test fills anew."""
    return timm.create_model("resnet50", num_classes=0).eval()


@pytest.fixture
def loaded(timm50: torch.nn.Module) -> Callable[[Path], tuple[torch.nn.Module, Taken]]:
    """A function from a file to timm's ResNet-50 with its weights; the file is removed."""

    def load(path: Path) -> tuple[torch.nn.Module, Taken]:
        with torch.no_grad():
            for value in timm50.state_dict().values():
                value.fill_(3)
        taken = take_backbone(path)
        load_weights(timm50, taken.state, path=path, name="resnet50")
        path.unlink()
        return timm50, taken

    return load
