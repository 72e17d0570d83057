"""What the engine relies on, for every registered method."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tests.conformance.bed import (
    BATCH,
    Data,
    build,
    cases,
    method_class,
    optimizer_of,
    small,
    train_step,
)
from transferbench.errors import UserError
from transferbench.methods.method import Context, Method, MethodSettings

METHODS = cases()


@pytest.mark.parametrize("name", METHODS)
def test_the_class_says_what_it_is(name: str) -> None:
    method = method_class(name)
    assert issubclass(method, Method)
    assert issubclass(method.Settings, MethodSettings)
    undescribed = [n for n, f in method.Settings.model_fields.items() if not f.description]
    assert not undescribed, f"settings without a description: {undescribed}"
    method.Settings()  # every field has the paper's value as its default


@pytest.mark.parametrize("name", METHODS)
def test_every_trained_parameter_is_in_one_group(name: str) -> None:
    method = build(name)
    grouped = [id(p) for group in method.parameter_groups().values() for p in group]
    trained = [id(p) for p in method.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)
    assert all(p.ndim <= 1 for p in method.parameter_groups()["bias-and-norm"])


@pytest.mark.parametrize("name", METHODS)
def test_every_trained_parameter_receives_a_gradient(name: str) -> None:
    method = build(name)
    views, batch = Data(name).step(5)
    method.before_step(batch)
    method(views, batch).backward()
    missing = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize("name", METHODS)
def test_embeddings_count_images_first_and_hold_features(name: str) -> None:
    method = build(name)
    views, batch = Data(name).step(0)
    embeddings = method.embed(views, batch)
    assert {len(value) for value in embeddings.values()} == {BATCH}
    assert embeddings["features"].shape == (BATCH, method.num_features)
    assert not embeddings["features"].requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_a_finite_scalar_in_full_precision_under_autocast(name: str) -> None:
    method = build(name)
    views, batch = Data(name).step(0)
    method.before_step(batch)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = method.embed(views, batch)
        loss = method.loss(embeddings, batch)
    assert any(value.dtype == torch.bfloat16 for value in embeddings.values())
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()


@pytest.mark.parametrize("name", METHODS)
def test_what_is_logged_are_finite_scalars(name: str) -> None:
    method = build(name)
    train_step(method, optimizer_of(method), Data(name), 0)
    assert method.logged
    for value in method.logged.values():
        assert not isinstance(value, torch.Tensor) or (value.ndim == 0 and not value.requires_grad)
        assert torch.tensor(float(value)).isfinite()


@pytest.mark.parametrize("name", METHODS)
def test_one_image_a_batch_is_refused_where_batch_norm_needs_more(name: str) -> None:
    context = Context(
        num_images=32,
        num_classes=5,
        view_sizes=small(name).view_sizes,
        batch_size=1,
        total_steps=10,
        steps_per_epoch=5,
        epochs=2,
    )
    method = method_class(name)
    settings, backbone = method.Settings(**small(name).settings), small(name).backbone()
    if not any(isinstance(m, _BatchNorm) for m in build(name).modules()):
        method(settings, backbone, context)  # one image is as good as many
        return
    with pytest.raises(UserError, match=f"batch_size.*{name.partition(':')[0]}"):
        method(settings, backbone, context)
