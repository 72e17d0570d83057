from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conformance.bed import Data, TinyNet, build
from transferbench.errors import UserError
from transferbench.methods.method import Context
from transferbench.methods.supervised import Supervised


def context(classes: int | None, views: int = 1) -> Context:
    return Context(
        num_images=32,
        num_classes=classes,
        view_sizes=(16,) * views,
        batch_size=8,
        total_steps=4,
        steps_per_epoch=4,
        epochs=1,
    )


def test_a_data_set_without_labels_is_refused() -> None:
    with pytest.raises(UserError, match="supervised needs labels"):
        Supervised(Supervised.Settings(), TinyNet(), context(None))


def test_two_views_are_refused() -> None:
    with pytest.raises(UserError, match="supervised takes exactly 1 view of an image"):
        Supervised(Supervised.Settings(), TinyNet(), context(5, views=2))


def test_the_network_starts_as_the_paper_s_unless_told_otherwise() -> None:
    def scale_after(initialization: str) -> float:
        network = TinyNet()
        last = network.layers[4]
        assert isinstance(last, nn.BatchNorm2d)
        nn.init.zeros_(last.weight)
        settings = Supervised.Settings.model_validate({"initialization": initialization})
        Supervised(settings, network, context(5))
        return last.weight.detach().mean().item()

    assert scale_after("fan-out") == 1.0
    assert scale_after("backbone") == 0.0


def test_a_network_without_batch_norm_keeps_its_own_start() -> None:
    class Plain(nn.Module):
        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 4, 4, stride=4)

    network = Plain()
    weight = network.patches.weight.clone()
    Supervised(Supervised.Settings(), network, context(5))
    assert torch.equal(network.patches.weight, weight)


def test_accuracy_is_logged() -> None:
    method = build("supervised")
    _, batch = Data("supervised").step(0)
    assert batch.labels is not None
    logits = nn.functional.one_hot(batch.labels, 5).float()
    logits[0] = logits[0].roll(1)
    method.loss({"logits": logits}, batch)
    assert float(method.logged["top1"]) == pytest.approx(7 / 8)


def layers(**settings: object) -> list[str]:
    method = Supervised(Supervised.Settings(**settings), TinyNet(), context(5))
    inner = list(method.classifier.children()) or [method.classifier]
    return [type(layer).__name__ for layer in inner]


def test_the_classifier_may_have_a_hidden_layer_batch_norm_and_dropout() -> None:
    assert layers() == ["Linear"]
    assert layers(dropout=0.2) == ["Dropout", "Linear"]
    assert layers(classifier_hidden=7) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert layers(classifier_hidden=7, classifier_batch_norm=False, dropout=0.2) == [
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
    ]


def test_batch_norm_that_is_not_there_cannot_be_left_out() -> None:
    with pytest.raises(UserError, match="give 'classifier_hidden'"):
        layers(classifier_batch_norm=False)


def test_dropout_drops_in_training_only() -> None:
    method, data = build("supervised", dropout=0.5), Data("supervised")
    views, batch = data.step(0)
    first, second = (method.embed(views, batch)["logits"] for _ in range(2))
    assert not torch.equal(first, second)
    method.eval()
    first, second = (method.embed(views, batch)["logits"] for _ in range(2))
    assert torch.equal(first, second)
