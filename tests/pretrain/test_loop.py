"""The loop: hooks in order, rates and phases set, stopped and continued without a trace."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import transferbench.pretrain.loop as loop
from tests.pretrain.conftest import NoiseSource, make_recipe, train
from transferbench import registry
from transferbench.errors import UserError
from transferbench.methods.swav import SwAV
from transferbench.pretrain import PretrainingFailed
from transferbench.pretrain.loop import Trainer
from transferbench.pretrain.recipe import resolve
from transferbench.pretrain.run import pretrain

TIMES = {"images_per_second", "seconds"}


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    assert log_lines(one) == log_lines(other)
    weights = "backbone.safetensors"
    assert (one / weights).read_bytes() == (other / weights).read_bytes()
    state, same = (
        torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (one, other)
    )
    assert state["method"].keys() == same["method"].keys()
    for key, value in state["method"].items():
        assert torch.equal(value, same["method"][key]), key
    for key, value in state["random"].items():
        assert torch.equal(value, same["random"][key]), key


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight")
    torch.manual_seed(1)
    train(folder)
    return folder


class Recording(SwAV):
    """SwAV that writes down what is called."""

    calls: list[Any]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls = []

    def before_epoch(self, epoch: int, embed_all: Any, generator: Any) -> None:
        indices, plain = embed_all(lambda views: self.backbone(views[0]))
        _, augmented = embed_all(
            lambda views: torch.cat([v.mean((1, 2, 3))[:, None] for v in views], 1), views="train"
        )
        trained, _ = embed_all(lambda views: views[0].mean((1, 2, 3)), training=True)
        assert sorted(trained.tolist()) == list(range(40)) != trained.tolist()
        shapes = tuple(plain.shape), tuple(augmented.shape)
        self.calls.append(("before_epoch", epoch, indices.tolist() == list(range(40)), *shapes))

    def before_step(self, batch: Any) -> None:
        super().before_step(batch)
        self.weight = self.projector[0].weight.detach().clone()
        self.calls.append("before_step")

    def moved(self) -> bool:
        return not torch.equal(self.weight, self.projector[0].weight)

    def embed(self, views: Any, batch: Any) -> Any:
        self.calls.append("embed")
        return super().embed(views, batch)

    def loss(self, embeddings: Any, batch: Any) -> Any:
        self.calls.append("loss")
        return super().loss(embeddings, batch)

    def after_backward(self, batch: Any) -> None:
        super().after_backward(batch)
        has_gradient = self.projector[0].weight.grad is not None
        self.calls.append(("after_backward", has_gradient, self.moved()))

    def after_step(self, embeddings: Any, batch: Any) -> None:
        super().after_step(embeddings, batch)
        self.calls.append(("after_step", embeddings["z"].requires_grad, self.moved()))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A trainer of one epoch whose method records."""
    monkeypatch.setattr(registry, "load", lambda *_: Recording)
    recipe = resolve(make_recipe(epochs=1, schedule={"name": "constant"}))
    return Trainer(recipe, NoiseSource().load(), device="cpu")


def test_hooks_are_called_in_the_order_of_the_contract(trainer: Trainer, tmp_path: Path) -> None:
    trainer.run(tmp_path)
    calls: list[Any] = trainer.method.calls  # type: ignore[assignment]
    width = trainer.method.backbone.num_features
    assert calls[0] == ("before_epoch", 0, True, (40, width), (40, 3))
    step = ["before_step", "embed", "loss"]
    step += [("after_backward", True, False), ("after_step", False, True)]
    assert calls[1:] == step * 5


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(
    straight: Path, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    train(tmp_path / "again")
    assert_same_run(straight, tmp_path / "again")
    train(tmp_path / "other", seed=1)
    runs = (straight, tmp_path / "other")
    weights = [(run / "backbone.safetensors").read_bytes() for run in runs]
    assert weights[0] != weights[1]


class Stop(Exception):
    """Stands for a kill: nothing of the trainer runs after it."""


class Chancy(SwAV):
    """SwAV that draws from every source of chance and changes with every epoch."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("epochs", torch.zeros(()))

    def before_epoch(self, epoch: int, embed_all: Any, generator: Any) -> None:
        self.epochs += 1 + embed_all(lambda views: views[0].mean((1, 2, 3)))[1].mean()

    def embed(self, views: Any, batch: Any) -> Any:
        noise = torch.rand(views[0].shape, generator=batch.generator) + self.epochs
        return super().embed((views[0] + noise, F.dropout(views[1]), *views[2:]), batch)


def chancy(patch: pytest.MonkeyPatch) -> None:
    """Let what is trained from now on be chancy, and warn of its features."""
    patch.setattr(registry, "load", lambda *_: Chancy)
    patch.setattr(loop, "feature_health", lambda _: {"spread": 0.01})
    patch.setattr(loop, "LOG_STEPS", 2)


@pytest.fixture(scope="module")
def straight_by_chance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chancy run that nothing stopped."""
    folder = tmp_path_factory.mktemp("chancy")
    with pytest.MonkeyPatch.context() as patch:
        chancy(patch)
        train(folder)
    return folder


@pytest.mark.parametrize("at", [1, 5, 8, 12, 15])
def test_stopped_after_any_step_and_continued_equals_uninterrupted(
    at: int, straight_by_chance: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 5 and 15 end an epoch; a checkpoint is written after every step."""
    chancy(monkeypatch)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SECONDS_AT_EPOCH_END", 0.0)
    save = loop.save_checkpoint

    def save_and_stop(checkpoint: Any, path: Path) -> None:
        save(checkpoint, path)
        if checkpoint.step == at:
            raise Stop

    monkeypatch.setattr(loop, "save_checkpoint", save_and_stop)
    with pytest.raises(Stop):
        train(tmp_path / "stopped")
    monkeypatch.setattr(loop, "save_checkpoint", save)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 1e9)
    train(tmp_path / "stopped")
    assert_same_run(straight_by_chance, tmp_path / "stopped")


def test_steps_done_after_the_last_checkpoint_are_done_again_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    monkeypatch.setattr(loop, "SAVE_SECONDS_AT_EPOCH_END", 0.0)
    train(tmp_path / "straight")
    step = Trainer._train_step

    def stop_at_seven(self: Trainer, *arguments: Any) -> Any:
        if self.step == 7:
            # What a kill in the middle of a write leaves.
            with (tmp_path / "stopped" / "log.jsonl").open("a") as file:
                file.write('{"kind": "steps", "st')
            raise Stop
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", stop_at_seven)
    with pytest.raises(Stop):
        train(tmp_path / "stopped")
    monkeypatch.setattr(Trainer, "_train_step", step)
    train(tmp_path / "stopped")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("number", "leaves"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_saves_the_state_and_leaves(
    number: int,
    leaves: type[BaseException],
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Trainer._train_step

    def step_and_signal(self: Trainer, *arguments: Any) -> Any:
        features = step(self, *arguments)
        if self.step == 7:
            signal.raise_signal(number)
        return features

    before = signal.getsignal(number)
    monkeypatch.setattr(Trainer, "_train_step", step_and_signal)
    with pytest.raises(leaves) as left:
        train(tmp_path / "stopped")
    if leaves is SystemExit:
        assert left.value.code == 143  # type: ignore[attr-defined]
    assert signal.getsignal(number) is before
    assert torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)["step"] == 7
    monkeypatch.setattr(Trainer, "_train_step", step)
    train(tmp_path / "stopped")
    assert_same_run(straight, tmp_path / "stopped")


def rates(folder: Path) -> list[float]:
    return [line["lr"] for line in log_lines(folder) if line["kind"] == "steps"]


def test_phases_change_views_schedule_and_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    seen: list[tuple[int, ...]] = []
    embed = SwAV.embed

    def look(self: SwAV, views: Any, batch: Any) -> Any:
        seen.append(tuple(view.shape[-1] for view in views))
        return embed(self, views, batch)

    monkeypatch.setattr(SwAV, "embed", look)
    optimizer = {
        "name": "sgd",
        "lr": 0.4,
        "group": [{"name": "prototypes", "lr": 0.3}],
    }
    phases = [
        {"from_epoch": 1, "views": [{"count": 2, "size": 12}]},
        {"from_epoch": 2, "lr": 0.1, "schedule": {"name": "fractional-cosine"}},
    ]
    train(tmp_path, optimizer=optimizer, phases=phases, schedule={"name": "constant"}, epochs=4)
    assert seen == [(16, 16, 8)] * 5 + [(12, 12)] * 5 + [(16, 16, 8)] * 10
    found = rates(tmp_path)
    assert found[:10] == [0.4] * 10
    # The last phase's schedule runs over its own two epochs: its middle is half its rate.
    assert found[10] == 0.1
    assert found[15] == pytest.approx(0.05)
    groups = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    peaks = {group["name"]: group["peak_lr"] for group in groups}
    assert peaks == {"weights": 0.1, "prototypes": 0.3, "bias-and-norm": 0.1}


def test_half_precision_reaches_the_networks_and_stops_before_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: list[Any] = []
    loss = SwAV.loss

    def look(self: SwAV, embeddings: Any, batch: Any) -> Any:
        dtypes.append((embeddings["z"].dtype, torch.is_autocast_enabled("cpu")))
        return loss(self, embeddings, batch)

    inside: list[bool] = []
    embed = SwAV.embed

    def look_inside(self: SwAV, views: Any, batch: Any) -> Any:
        inside.append(torch.is_autocast_enabled("cpu"))
        return embed(self, views, batch)

    monkeypatch.setattr(SwAV, "loss", look)
    monkeypatch.setattr(SwAV, "embed", look_inside)
    train(tmp_path, precision="bfloat16", epochs=1)
    assert set(dtypes) == {(torch.float32, False)}
    assert set(inside) == {True}


def test_a_loss_that_is_no_number_fails_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS_AT_EPOCH_END", 0.0)
    loss = SwAV.loss

    def spoil(self: SwAV, embeddings: Any, batch: Any) -> Any:
        value = loss(self, embeddings, batch)
        return value * float("nan") if batch.step == 8 else value

    monkeypatch.setattr(SwAV, "loss", spoil)
    with pytest.raises(PretrainingFailed, match=r"swav on noise failed .* lower learning rate"):
        train(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 5
    assert all(torch.isfinite(v).all() for v in state["method"].values() if v.is_floating_point())
    notes = json.loads((tmp_path / "run.json").read_text())
    assert notes["state"] == "unfinished"
    assert "nan" in notes["failure"]


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        (NoiseSource(7), {}, r"batch_size is 8, but 'noise' has 7 training images"),
        (
            NoiseSource(task="multilabel"),
            {"method": "supervised", "settings": {}, "views": [{"size": 16}]},
            r"'supervised' needs one label an image, but 'noise' is a multilabel set",
        ),
        (NoiseSource(), {"views": [{"size": 16}]}, r"swav .* at least 2 views"),
        (NoiseSource(), {"backbone": {"name": "resnet81"}}, r"unknown architecture 'resnet81'"),
        (
            NoiseSource(),
            {"optimizer": {"name": "sgd", "lr": 0.1, "group": [{"name": "prototype"}]}},
            r"unknown parameter group 'prototype' .* did you mean 'prototypes'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    source: NoiseSource, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        train(tmp_path / "run", source, **changes)
    assert not (tmp_path / "run").exists()


def test_labels_reach_the_method_that_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transferbench.methods.supervised import Supervised

    seen: dict[int, int] = {}
    loss = Supervised.loss

    def look(self: Supervised, embeddings: Any, batch: Any) -> Any:
        seen.update(zip(batch.indices.tolist(), batch.labels.tolist(), strict=True))
        return loss(self, embeddings, batch)

    monkeypatch.setattr(Supervised, "loss", look)
    pretrain(
        make_recipe(method="supervised", settings={}, views=[{"size": 16}], epochs=1),
        tmp_path,
        source=NoiseSource(),  # type: ignore[arg-type]
        device="cpu",
    )
    assert seen == {index: index % 4 for index in range(40)}


def build(**changes: Any) -> Trainer:
    return Trainer(resolve(make_recipe(**changes)), NoiseSource().load(), device="cpu")


def test_a_later_phase_with_views_that_the_method_cannot_take_is_refused_first() -> None:
    one_view = [{"from_epoch": 1, "views": [{"size": 16}]}]
    with pytest.raises(UserError, match="at least 2 views"):
        build(phases=one_view)


def test_a_size_that_the_network_does_not_take_is_refused_first() -> None:
    with pytest.raises(UserError, match="cannot take images of 8 px"):
        build(backbone={"name": "vit_tiny_patch16_224"})


def test_the_rate_falls_to_nothing_on_a_set_that_the_batch_does_not_divide() -> None:
    training = build(epochs=8, batch_size=24, settings={"prototypes": 6})
    assert training.total_steps == 8
    training.step = 7
    training._set_learning_rate(7)
    assert training.optimizer.param_groups[0]["lr"] < 0.2 * 0.05


def test_making_a_trainer_leaves_the_callers_random_state() -> None:
    before = torch.get_rng_state()
    build()
    assert torch.equal(before, torch.get_rng_state())
