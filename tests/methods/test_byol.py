from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.conformance.bed import STEPS, Data, TinyNet, build, optimizer_of, train_step
from transferbench.methods.byol import BYOL


class Counting(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        return super().forward(images)


def test_every_view_passes_alone_through_both_networks() -> None:
    method = build("byol", backbone=Counting())
    views, batch = Data("byol").step(0)
    method.embed(views, batch)
    assert method.backbone.rows == [8, 8]
    assert method.target_backbone.rows == [8, 8]


def test_the_target_starts_equal_and_is_never_trained() -> None:
    method = build("byol")
    pairs = (("backbone", "target_backbone"), ("projector", "target_projector"))
    for online, target in pairs:
        expected = method.get_submodule(online).state_dict()
        for name, value in method.get_submodule(target).state_dict().items():
            assert torch.equal(value, expected[name])
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert not any(name.startswith("target_") for name in trained)


def test_gradients_reach_the_online_side_alone() -> None:
    method = build("byol")
    _, batch = Data("byol").step(0)
    predictions = torch.randn(8, 2, 4, requires_grad=True)
    targets = torch.randn(8, 2, 4, requires_grad=True)
    loss = method.loss({"predictions": predictions, "targets": targets}, batch)
    loss.backward()
    assert predictions.grad is not None
    assert targets.grad is None
    assert 0 <= loss.item() <= 8


def test_the_loss_spans_zero_to_eight() -> None:
    method = build("byol")
    _, batch = Data("byol").step(0)
    z = torch.randn(8, 2, 4)
    best = method.loss({"predictions": z, "targets": z.flip(1) * 3}, batch)
    worst = method.loss({"predictions": z, "targets": -z.flip(1)}, batch)
    assert best.item() == pytest.approx(0, abs=1e-5)
    assert worst.item() == pytest.approx(8, abs=1e-5)


def test_the_target_follows_the_weights_that_the_step_has_made() -> None:
    method, data = build("byol", tau_base=0.5), Data("byol")
    before = method.target_projector[0].weight.clone()
    train_step(method, optimizer_of(method), data, 0)
    online = method.projector[0].weight.detach()
    torch.testing.assert_close(method.target_projector[0].weight, 0.5 * before + 0.5 * online)
    assert not torch.equal(online, before)


def test_the_target_keeps_batch_norm_statistics_of_its_own() -> None:
    method, data = build("byol"), Data("byol")
    optimizer = optimizer_of(method, lr=0.5)
    for step in range(6):
        train_step(method, optimizer, data, step)
    own, online = method.target_projector[1], method.projector[1]
    assert isinstance(own, nn.BatchNorm1d)
    assert own.num_batches_tracked == online.num_batches_tracked == 12
    assert not torch.allclose(own.running_mean, online.running_mean)


@pytest.mark.parametrize(("tau", "moves"), [(1.0, False), (0.0, True)])
def test_constant_tau_is_the_ablation_s_random_or_online_target(tau: float, moves: bool) -> None:
    method, data = build("byol", tau_base=tau, constant_tau=True), Data("byol")
    before = [p.clone() for p in method.target_backbone.parameters()]
    optimizer = optimizer_of(method)
    for step in range(3):
        train_step(method, optimizer, data, step)
    expected = list(method.backbone.parameters()) if moves else before
    for mine, theirs in zip(method.target_backbone.parameters(), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_tau_rises_to_one_unless_it_is_constant() -> None:
    _, first = Data("byol").step(0)
    _, last = Data("byol").step(STEPS)
    rising, constant = build("byol", tau_base=0.9), build("byol", tau_base=0.9, constant_tau=True)
    assert (rising.tau(first), rising.tau(last)) == (pytest.approx(0.9), pytest.approx(1.0))
    assert (constant.tau(first), constant.tau(last)) == (0.9, 0.9)


def test_the_predictor_s_weights_are_a_group_of_their_own() -> None:
    method = build("byol")
    assert isinstance(method, BYOL)
    groups = method.parameter_groups()
    weights = [p for p in method.predictor.parameters() if p.ndim > 1]
    assert [id(p) for p in groups["predictor"]] == [id(p) for p in weights]


def test_the_predictor_has_the_layers_asked_for() -> None:
    def linears(layers: int) -> int:
        method = build("byol", predictor_layers=layers)
        return sum(isinstance(m, nn.Linear) for m in method.get_submodule("predictor").modules())

    assert [linears(layers) for layers in range(4)] == [0, 1, 2, 3]
    assert build("byol", predictor_layers=0).parameter_groups()["predictor"] == []
