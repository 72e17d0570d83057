from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conformance.bed import Data, TinyNet, build, optimizer_of, train_step
from transferbench.methods.simsiam import SimSiam, negative_cosine
from transferbench.optim.build import build_optimizer, set_learning_rate
from transferbench.optim.settings import OptimizerSettings, ScheduleSettings


def test_stop_gradient_keeps_the_loss_from_reaching_the_projections_it_predicts() -> None:
    _, batch = Data("simsiam").step(0)
    p, z = (torch.randn(8, 2, 4, requires_grad=True) for _ in range(2))
    build("simsiam").loss({"p": p, "z": z}, batch).backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None
    assert z.grad is None
    build("simsiam", stop_gradient=False).loss({"p": p, "z": z}, batch).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None


def test_each_view_is_predicted_from_the_other() -> None:
    _, batch = Data("simsiam").step(0)
    z = torch.randn(8, 2, 4)
    method = build("simsiam")
    assert float(method.loss({"p": z.flip(1) * 3, "z": z}, batch)) == pytest.approx(-1)
    assert float(method.loss({"p": -z.flip(1), "z": z}, batch)) == pytest.approx(1)
    assert abs(float(method.loss({"p": z, "z": z}, batch))) < 0.9


def test_the_whole_predictor_keeps_its_rate_while_the_encoder_s_falls() -> None:
    method = build("simsiam")
    settings = OptimizerSettings.model_validate(
        {"name": "sgd", "lr": 0.1, "group": [{"name": "predictor", "fixed_lr": True}]}
    )
    optimizer = build_optimizer(settings, method.parameter_groups(), batch_size=8)
    schedule = ScheduleSettings(name="epoch-cosine")
    set_learning_rate(optimizer, schedule, 5, steps_per_epoch=1, epochs=10)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(p)] for p in method.predictor.parameters()] == [0.1] * 5
    assert all(rates[id(p)] == pytest.approx(0.05) for p in method.backbone.parameters())


def test_the_projector_s_last_bias_stays_as_it_was() -> None:
    method, data = build("simsiam"), Data("simsiam")
    assert isinstance(method, SimSiam)
    last, norm = method.projector[-2:]
    assert isinstance(last, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert not norm.affine
    before = last.bias.clone()
    train_step(method, optimizer_of(method), data, 0)
    assert torch.equal(last.bias, before)
    assert "projector.6.bias" in method.state_dict()


def test_the_projector_s_hidden_width_is_the_backbone_s_unless_given() -> None:
    assert build("simsiam").projector[0].out_features == TinyNet.num_features
    assert build("simsiam", projector_hidden=7).projector[0].out_features == 7
    assert len(build("simsiam", projector_layers=2).projector) == 5


def test_a_zero_prediction_has_a_finite_gradient() -> None:
    p = torch.zeros(2, 3, requires_grad=True)
    negative_cosine(p, torch.randn(2, 3)).sum().backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None
    assert p.grad.isfinite().all()
