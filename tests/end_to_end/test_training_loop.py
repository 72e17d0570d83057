"""In someone's training loop: the module, and all around it, is afterwards as it was."""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import transferbench as tb
from tests.end_to_end.mini import tree
from transferbench.api import callback as callbacks
from transferbench.backbones.borrowing import bare, random_state_kept
from transferbench.backbones.reference import parse_reference
from transferbench.backbones.wrap import wrap_module

PARAMETERS: dict[str, dict[str, Any]] = {
    "knn": {"k": 3, "resamples": 20},
    "linear": {"count": 2, "resamples": 20},
    "fewshot": {"ways": 2, "shots": 2, "queries": 2, "episodes": 3},
    "geometry": {"images": 10},
    "finetune": {
        "steps": 2,
        "learning_rates": (0.01,),
        "base_decays": (0.0,),
        "resamples": 20,
        "batch_size": 4,
    },
}


class Net(nn.Module):
    """A network with everything that an evaluation could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=4)
        self.norm = nn.BatchNorm2d(6)
        self.frozen = nn.BatchNorm2d(6).eval().requires_grad_(False)
        self.drop = nn.Dropout(0.5)
        self.weight_normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(5), persistent=False)
        self.kept: torch.Tensor | None = None
        self.fail_at = -1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if int(self.calls) == self.fail_at:
            raise RuntimeError("power cut")
        # Chance of all three libraries, in evaluation mode too.
        noise = random.random() + np.random.rand() + torch.rand(())
        x = self.drop(self.frozen(self.norm(self.conv(images)))).mean((2, 3))
        features = self.weight_normed(x) + 1e-6 * noise
        self.average = 0.9 * self.average + 0.1 * features.detach().mean(0)
        if self.kept is None:
            self.kept = torch.arange(5.0)
        return features * (1 + 0.0 * self.kept)


@pytest.fixture
def net() -> Net:
    """In the middle of its training: gradients, statistics, an optimizer's moments, a hook."""
    torch.manual_seed(0)
    net = Net().train()
    net.frozen.eval()
    net.conv.register_forward_hook(lambda *_: None)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, 0.9)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    net.calls.zero_()
    return net


def state(net: nn.Module) -> dict[str, Any]:
    """All that an evaluation could have changed."""
    tensors = {f"buffer {k}": v for k, v in net.named_buffers()}
    tensors |= {f"parameter {k}": v for k, v in net.named_parameters()}
    tensors |= {f"grad {k}": v.grad for k, v in net.named_parameters() if v.grad is not None}
    parts = dict(net.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": {k: part.training for k, part in parts.items()},
        "hooks": {k: [list(getattr(part, h)) for h in hooks] for k, part in parts.items()},
        "trained": {k: p.requires_grad for k, p in net.named_parameters()},
        "places": {k: (v.data_ptr(), v.stride(), str(v.device)) for k, v in tensors.items()},
        "values": {k: v.detach().clone() for k, v in tensors.items()},
        "chance": (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    values = before.pop("values"), after.pop("values")
    assert before == after
    assert values[0].keys() == values[1].keys()
    for key, value in values[0].items():
        assert torch.equal(value, values[1][key]), key


@pytest.mark.parametrize("protocol", PARAMETERS)
def test_an_evaluation_leaves_everything_as_it_was(work: Path, net: Net, protocol: str) -> None:
    before = state(net)
    tb.evaluate(
        net, "folder:images", protocol, parameters=PARAMETERS[protocol], input_size=32
    )  # fmt: skip
    assert_same(before, state(net))


def test_a_backbone_comes_back_as_it_was_too(work: Path, fresh_cache: Path) -> None:
    backbone = parse_reference("random:resnet10t@32", seed=0).load("cpu")
    before = state(backbone.module)
    tb.evaluate(backbone, "folder:images", "knn", parameters=PARAMETERS["knn"])
    assert_same(before, state(backbone.module))


@pytest.mark.parametrize("call", [1, 2])
def test_also_when_it_fails_midway(work: Path, net: Net, call: int) -> None:
    net.fail_at = call
    before = state(net)
    with pytest.raises((tb.UserError, RuntimeError), match="power cut"):
        tb.evaluate(
            net, "folder:images", "knn", parameters=PARAMETERS["knn"], input_size=32
        )  # fmt: skip
    assert_same(before, state(net))


def test_training_goes_on_to_the_same_bits(work: Path, net: Net) -> None:
    other = copy.deepcopy(net)

    def train(net: Net, evaluated: bool) -> Net:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for _ in range(3):
            if evaluated:
                tb.evaluate(
                    net, "folder:images", "knn", parameters=PARAMETERS["knn"], input_size=32
                )  # fmt: skip
            optimizer.zero_grad()
            net(torch.randn(4, 3, 32, 32)).square().sum().backward()
            optimizer.step()
        return net

    one, two = train(net, True), train(other, False)
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key


class Merging(nn.Linear):
    """As adapters do: in evaluation mode a second weight is merged into the first."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.more = nn.Parameter(torch.rand(6, 6))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -self.more.data if mode else self.more.data
            self.merged = not mode
        return self


def test_what_a_part_does_in_evaluation_mode_is_undone_in_its_own_way(work: Path) -> None:
    merging = Merging()
    net = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), merging).train()
    before = merging.weight.detach().clone()
    tb.evaluate(net, "folder:images", "knn", parameters=PARAMETERS["knn"], input_size=32)
    assert not merging.merged
    assert torch.equal(merging.weight, before)


def test_a_network_that_remembers_results_is_asked_anew(work: Path) -> None:
    """LeViT keeps its attention biases in evaluation mode, and forgets them when it trains."""
    torch.manual_seed(0)
    net = timm.create_model("levit_128s", num_classes=0, img_size=64).train()
    said = {"parameters": PARAMETERS["geometry"], "input_size": 64}
    first = tb.evaluate(net, "folder:images", "geometry", **said)
    assert not any(getattr(part, "attention_bias_cache", None) for part in net.modules())
    with torch.no_grad():
        for key, value in net.named_parameters():
            if "attention_biases" in key:
                value.normal_(std=30)
    second = tb.evaluate(net, "folder:images", "geometry", **said)
    assert first.value != second.value


def test_changed_weights_are_seen_and_no_stale_features_pile_up(
    work: Path, fresh_cache: Path
) -> None:
    class Colour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (images * self.weight.view(1, 3, 1, 1)).mean((2, 3))

    net = Colour()
    values, files = [], []
    for step in range(4):
        with torch.no_grad():
            net.weight.copy_(torch.tensor([1.0, 1.0, 1.0 + 9 * step]))
        for protocol in ("geometry", "linear", "finetune"):
            score = tb.evaluate(
                net, "folder:images", protocol, parameters=PARAMETERS[protocol], input_size=32
            )  # fmt: skip
            if protocol == "geometry":
                values.append(score.value)
        files.append(set(tree(fresh_cache)))
    assert len(set(values)) == 4
    assert files[0] == files[3]
    assert not any("features" in name or "finetune" in name for name in files[3])


def test_who_calls_decides_nothing_about_the_number(work: Path, net: Net) -> None:
    net.forward = lambda images: net.norm(net.conv(images)).mean((2, 3))  # type: ignore[method-assign]

    def value(protocol: str = "geometry") -> float:
        return tb.evaluate(
            net, "folder:images", protocol, parameters=PARAMETERS[protocol], input_size=32
        ).value  # fmt: skip

    expected = value()
    with torch.inference_mode():
        assert value() == expected
        # It needs gradients.
        assert value("finetune") >= 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert value() == expected
    torch.set_float32_matmul_precision("medium")
    try:
        assert value() == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_wraps_a_network_is_passed_by() -> None:
    net = nn.Linear(3, 3)
    assert bare(net) is net
    assert bare(nn.DataParallel(net)) is net
    assert bare(torch.compile(nn.DataParallel(net), backend="eager")) is net  # type: ignore[arg-type]


def test_modules_that_cannot_be_evaluated_are_told_in_one_line(work: Path) -> None:
    def said(module: nn.Module, **options: Any) -> str:
        with pytest.raises(tb.UserError) as caught:
            tb.evaluate(module, "folder:images", "knn", **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    assert "pass a batch of images through it first" in said(lazy)
    parts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    assert "are on cpu and meta; give 'device'" in said(parts)
    assert "'meta' is no device" in said(parts[1])
    assert "input_size: " in said(nn.Flatten(), input_size=0)
    assert "interpolation: " in said(nn.Flatten(), interpolation="cubic")
    half = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()).bfloat16()
    assert "does not take images of 32 px" in said(half, input_size=32)


def test_any_extra_state_is_in_the_digest() -> None:
    class Extra(nn.Module):
        extra = 1

        def get_extra_state(self) -> dict[str, int]:
            return {"extra": self.extra}

        def set_extra_state(self, state: object) -> None: ...

    one, two = Extra(), Extra()
    two.extra = 2
    assert wrap_module(one, input_size=4).digest != wrap_module(two, input_size=4).digest


def test_the_random_state_comes_back_from_whatever_happens() -> None:
    before = state(nn.Identity())["chance"]

    def stopped() -> None:
        random.random(), np.random.rand(), torch.rand(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), random_state_kept():
        stopped()
    assert state(nn.Identity())["chance"] == before


class Learner(nn.Module):
    """As a Lightning module: a backbone, a head, and `log`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(12, 2)
        self.logged: list[tuple[str, float]] = []

    def log(self, name: str, value: float) -> None:
        self.logged.append((name, value))


def knn(**options: Any) -> Any:
    return tb.TransferCallback(
        "folder:images",
        backbone=lambda learner: learner.backbone,
        input_size=32,
        parameters=PARAMETERS["knn"],
        **options,
    )


def test_a_plain_loop_measures_every_few_epochs(work: Path) -> None:
    measure, learner = knn(every=3), Learner()
    outcomes = [measure(learner, epoch) for epoch in range(7)]
    assert [epoch for epoch, found in enumerate(outcomes) if found] == [2, 5]
    assert measure.history == {2: outcomes[2], 5: outcomes[5]}
    assert outcomes[2].metric == "top1"
    assert outcomes[2].value == 1.0
    with pytest.raises(tb.UserError, match="every is a number of epochs"):
        knn(every=0)


def test_a_trainer_logs_it(work: Path) -> None:
    measure, learner = knn(every=2), Learner()
    for epoch in range(4):
        measure.on_train_epoch_end(SimpleNamespace(current_epoch=epoch), learner)
    assert learner.logged == [("images/knn", 1.0)] * 2
    # A module that cannot log is measured all the same.
    plain = tb.TransferCallback("folder:images", parameters=PARAMETERS["knn"], name="x")
    plain.on_train_epoch_end(SimpleNamespace(current_epoch=0), learner.backbone)
    assert plain.history[0].value == 1.0


def test_other_processes_log_the_value_of_the_first(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    def process(rank: int) -> Any:
        def broadcast(told: Any, src: int) -> Any:
            assert src == 0
            if rank == 0:
                sent.append(told)
            return sent[-1]

        strategy = SimpleNamespace(broadcast=broadcast)
        return SimpleNamespace(current_epoch=0, is_global_zero=rank == 0, strategy=strategy)

    measure, learners = knn(), [Learner(), Learner()]
    measure.on_train_epoch_end(process(0), learners[0])
    real = callbacks.evaluate
    monkeypatch.setattr(callbacks, "evaluate", None)
    measure.on_train_epoch_end(process(1), learners[1])
    assert learners[0].logged == learners[1].logged == [("images/knn", 1.0)]
    # A failure of the first ends all of them; none waits.
    monkeypatch.setattr(callbacks, "evaluate", real)
    learners[0].backbone = nn.Identity()
    with pytest.raises(tb.UserError, match=r"gives \(24, 3, 32, 32\)"):
        measure.on_train_epoch_end(process(0), learners[0])
    with pytest.raises(tb.UserError, match=r"first process could not evaluate: UserError: "):
        measure.on_train_epoch_end(process(1), learners[1])
    assert "lightning" not in sys.modules
