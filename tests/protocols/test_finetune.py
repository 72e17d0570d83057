"""Finetuning: what a run trains on, how the grid is searched, what is kept and what is refused."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.protocols.stubs import SIZE, make_backbone, make_dataset
from transferbench.errors import UserError
from transferbench.measures.metrics import score
from transferbench.optim.settings import OptimizerSettings
from transferbench.progress import SILENT
from transferbench.protocols import search as search_module
from transferbench.protocols import training
from transferbench.protocols.cuts import plain_images
from transferbench.protocols.finetune import Finetune, FinetuneParameters, plans_of
from transferbench.protocols.search import choose, halving_rounds, shortened
from transferbench.storage import canonical_json

pytestmark = pytest.mark.usefixtures("fresh_cache")

QUICK = FinetuneParameters(
    steps=18,
    batch_size=32,
    learning_rates=(0.1, 0.001),
    base_decays=(0.0, 1e-4),
    augmentation="off",
    resamples=20,
)


class Small(nn.Module):
    """A network with batch norm: (B, 3, S, S) to (B, 8)."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images):
        return self.norm(self.conv(images)).relu().mean((2, 3))


def small():
    return make_backbone(Small())


def run(parameters=QUICK, dataset=None, backbone=None, seed=0):
    return Finetune().run(
        backbone or small(), dataset or make_dataset(), parameters, seed=seed, device="cpu"
    )


def changed(**values):
    return FinetuneParameters.model_validate(QUICK.model_dump() | values)


@pytest.mark.parametrize(
    ("task", "metric"), [("multiclass", "mean_per_class"), ("multilabel", "map11")]
)
def test_the_best_pair_on_validation_is_retrained_and_scored_once(task, metric):
    log: list[str] = []
    dataset = make_dataset(log, task=task, metric=metric)
    outcome = run(dataset=dataset)
    first = log.index("test")
    assert log.count("test") == log.count("test.pixels") == 1
    assert not any(entry.startswith(("train", "val")) for entry in log[first:])
    trials = outcome.details["trials"]
    assert [(t["learning_rate"], t["weight_decay"]) for t in trials] == [
        (0.1, 0.0), (0.1, 1e-3), (0.001, 0.0), (0.001, 0.1),
    ]  # fmt: skip
    best = max(t["validation"] for t in trials)
    assert outcome.details["chosen"] == next(t for t in trials if t["validation"] == best)
    assert outcome.details["search_steps"] == outcome.details["full_grid_steps"] == 72
    assert outcome.details["precision"] == "float32"
    truth = dataset.splits["test"].labels
    assert score(metric, truth, outcome.predictions) == outcome.value > 0.6
    assert set(outcome.cost) == {"images", "search", "refit", "test"}
    canonical_json(outcome.details)


def test_backbone_and_random_state_stay_as_they_are():
    backbone = small()
    before = copy.deepcopy(backbone.module.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run(backbone=backbone)
    assert (torch.get_rng_state() == state).all()
    assert all((before[k] == v).all() for k, v in backbone.module.state_dict().items())


def test_equal_seeds_give_equal_runs_and_others_do_not(monkeypatch):
    one = changed(learning_rates=(0.01,), base_decays=(0.0,), augmentation="on")
    backbone = replace(small(), cacheable=False)
    noisy = {"dataset": make_dataset(noise=90.0)}
    first, second, other = (run(one, backbone=backbone, seed=s, **noisy) for s in (0, 0, 1))
    assert (first.predictions == second.predictions).all()
    assert first.details == second.details
    assert (first.predictions != other.predictions).any()


def test_a_killed_search_goes_on_with_the_next_run(monkeypatch, fresh_cache):
    whole = run(backbone=replace(small(), cacheable=False))
    assert not (fresh_cache / "finetune").exists()
    calls: list[float] = []
    real = training.train

    def killed(*arguments, **options):
        plan = arguments[4]
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(plan.learning_rate)
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    kept = sorted(fresh_cache.glob("finetune/*.json"))
    assert len(kept) == 2
    kept[0].write_text("{")  # a damaged file is no result
    calls.clear()

    def counted(*arguments, **options):
        calls.append(len(arguments[3]))
        return real(*arguments, **options)

    monkeypatch.setattr(training, "train", counted)
    again = run()
    assert calls == [160, 160, 160, 220]
    assert again.details == whole.details
    assert (again.predictions == whole.predictions).all()
    # The full grid has run what a search by halving ends with.
    calls.clear()
    assert run(changed(head_dropout=0.5)).details["trials"] != whole.details["trials"]
    assert len(calls) == 5


def test_kept_scores_are_told_apart_by_all_that_decides_them(fresh_cache):
    run(changed(learning_rates=(0.1,), base_decays=(0.0,)))
    for values in ({"steps": 17}, {"batch_size": 16}, {"labels": 40}, {"precision": "bf16"}):
        before = len(list(fresh_cache.glob("finetune/*.json")))
        run(changed(learning_rates=(0.1,), base_decays=(0.0,), **values))
        assert len(list(fresh_cache.glob("finetune/*.json"))) == before + 1


def test_augmentation_may_be_searched_too():
    outcome = run(changed(augmentation="paper", learning_rates=(0.1,)))
    trials = outcome.details["trials"]
    assert [t["augmentation"] for t in trials] == [True, True, False, False]
    assert len({t["validation"] for t in trials}) > 1
    assert run(changed(augmentation="on")).details["chosen"]["augmentation"] is True


def test_halving_trains_few_for_all_steps_and_says_what_that_saves():
    assert halving_rounds(20, 5000) == [(20, 555), (7, 1666), (3, 5000)]
    assert halving_rounds(3, 50) == [(3, 50)]
    grid = {"learning_rates": (0.3, 0.1, 0.03, 0.01, 0.001), "base_decays": (0.0,)}
    outcome = run(changed(search="halving", **grid))
    trials = outcome.details["trials"]
    assert [t["steps"] for t in trials] == [6] * 5 + [18] * 2
    first = sorted(trials[:5], key=lambda t: -t["validation"])[:2]
    assert {t["learning_rate"] for t in trials[5:]} == {t["learning_rate"] for t in first}
    assert outcome.details["chosen"] in trials[5:]
    assert outcome.details["search_steps"] == 66
    assert outcome.details["search_steps_saved"] == pytest.approx(1 - 66 / 90)
    full = run(changed(**grid)).details
    assert full["search_steps_saved"] == 0
    scores = {t["learning_rate"]: t["validation"] for t in full["trials"]}
    assert all(scores[t["learning_rate"]] == t["validation"] for t in trials[5:])


def test_ties_go_to_the_first_and_runs_without_a_score_never_win():
    (plan, *_) = plans_of(QUICK, "cpu")
    trials = [search_module.Trial(plan, value) for value in (None, 0.5, 0.7, 0.7)]
    assert choose(trials, 18) is trials[2]


def test_a_switch_comes_at_the_same_share_of_a_short_run():
    adam = {"name": "adam-then-sgd", "switch_step": 12, "sgd_factor": 10.0}
    (plan, *_) = plans_of(changed(optimizer=adam), "cpu")
    assert plan.optimizer.switch_epoch == 12
    assert shortened(plan, 6).optimizer.switch_epoch == 4
    assert shortened(plan, 18) == plan
    outcome = run(changed(optimizer=adam, learning_rates=(0.01,), base_decays=(0.0,)))
    assert outcome.value > 0.5


def plan_of(**values):
    plain = {"steps": 5, "batch_size": 32, "learning_rate": 0.1, "weight_decay": 0.01}
    optimizer = OptimizerSettings(
        name="sgd", momentum=0.9, nesterov=True, lr=values.get("learning_rate", 0.1),
        weight_decay=values.get("weight_decay", 0.01),
    )  # fmt: skip
    rest = {"augment": False, "head_dropout": 0.0, "precision": "float32"}
    return training.Plan(**{**plain, **rest, **values}, optimizer=optimizer)


def test_a_run_is_sgd_with_nesterov_under_a_cosine_from_the_first_step():
    """Against torch's SGD by hand, one batch at a time in the order that the seed draws."""
    dataset, backbone, plan = make_dataset(), small(), plan_of()
    split = dataset.splits["train"]
    images, labels = plain_images(backbone, [split], SILENT), split.labels
    found = training.train(
        backbone, images, labels, np.arange(70), plan, classes=4, seed=3, device="cpu"
    )
    with torch.random.fork_rng():
        torch.manual_seed(training._seed(3, "head"))
        expected = training.new_classifier(backbone, 4, plan, "cpu").train()
    optimizer = torch.optim.SGD(
        expected.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    state = np.random.RandomState(training._seed(3, "order"))
    # 70 images: 32, 32 and the last 6, then anew.
    rounds = [state.permutation(70) for _ in range(2)]
    batches = [rounds[0][:32], rounds[0][32:64], rounds[0][64:], rounds[1][:32], rounds[1][32:64]]
    for step, chosen in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * step / 5))
        pixels = backbone.normalize(torch.from_numpy(split.pixels(SIZE)[chosen]))
        loss = nn.functional.cross_entropy(expected(pixels), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert not found.training


def test_a_lone_last_image_is_left_out():
    order = training._order(np.arange(65), 64, np.random.RandomState(0))
    assert [len(next(order)) for _ in range(3)] == [64, 64, 64]
    order = training._order(np.arange(66), 64, np.random.RandomState(0))
    assert [len(next(order)) for _ in range(3)] == [64, 2, 64]


def test_a_rate_that_is_too_high_is_no_candidate(monkeypatch):
    monkeypatch.setattr(training, "LOOK_EVERY", 1)
    outcome = run(changed(learning_rates=(1e30, 0.1), base_decays=(0.0,)))
    assert [t["validation"] is None for t in outcome.details["trials"]] == [True, False]
    assert outcome.details["chosen"]["learning_rate"] == 0.1
    with pytest.raises(UserError, match="no run of pool on 'colors' had a finite loss"):
        run(changed(learning_rates=(1e30,), base_decays=(0.0,)))


def test_mixed_precision_runs_on_the_cpu_too():
    outcome = run(changed(precision="bf16", learning_rates=(0.1,), base_decays=(0.0,)))
    assert outcome.details["precision"] == "bf16"
    assert outcome.value > 0.6
    # Autocast keeps what it has cast until the outermost one ends: here, that of who calls.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = run(changed(precision="bf16", learning_rates=(0.1,), base_decays=(0.0,)))
    assert again.value == outcome.value
    assert plans_of(QUICK, "cuda:0")[0].precision == "bf16"
    assert plans_of(QUICK, "cpu")[0].precision == "float32"


def test_few_labels_are_used_alone():
    outcome = run(changed(labels=40, learning_rates=(0.1,), base_decays=(0.0,)))
    assert (outcome.details["train"], outcome.details["validation"]) == (32, 8)
    with pytest.raises(UserError, match="labels = 3 is 3 of the 220 training images"):
        run(changed(labels=3))


def test_what_a_network_refuses_is_named():
    class Picky(nn.Module):
        def forward(self, images):
            raise RuntimeError("input must be 224 px\nsecond line")

    with pytest.raises(
        UserError, match=r"pool does not take images of 8 px: input must be 224 px$"
    ):
        run(backbone=make_backbone(Picky()))

    class Map(nn.Module):
        def forward(self, images):
            return images

    with pytest.raises(UserError, match=r"pool gives \(2, 3, 8, 8\) for 2 images"):
        run(backbone=make_backbone(Map()))


def test_equal_labels_are_refused():
    dataset = make_dataset()
    for name in ("train", "val"):
        dataset.splits[name].labels[:] = 1
    with pytest.raises(UserError, match="'colors': all 160 training labels are equal"):
        run(dataset=dataset)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimizer": {"name": "sgd", "lr": 1.0}}, "'lr' is not for the optimizer"),
        ({"optimizer": {"name": "sgdd"}}, "name: Input should be"),
        ({"optimizer": {"name": "sgd", "betas": [0.9, 0.99]}}, "has no key 'betas'"),
        ({"optimizer": {"name": "adam-then-sgd"}}, "needs 'switch_step' and 'sgd_factor'"),
        (
            {"optimizer": {"name": "adam-then-sgd", "switch_step": 5000, "sgd_factor": 1.0}},
            "switch_step .5000. is not before the end of 5000 steps",
        ),
        ({"learning_rates": []}, "at least 1 item"),
        ({"learning_rates": [0.0]}, "greater than 0"),
        ({"augmentation": "maybe"}, "'on', 'off' or 'paper'"),
        ({"head_dropout": 1.0}, "less than 1"),
        ({"stepz": 3}, "Extra inputs"),
    ],
)
def test_parameters_are_checked(values, said):
    with pytest.raises(ValidationError, match=said):
        FinetuneParameters.model_validate(values)


def test_defaults_are_the_papers_and_compiling_changes_no_key():
    from transferbench.protocols.grids import finetune_pairs

    plans = plans_of(FinetuneParameters(), "cpu")
    pairs = [(plan.learning_rate, plan.weight_decay) for plan in plans]
    np.testing.assert_allclose(pairs, finetune_pairs())
    assert {(plan.steps, plan.batch_size) for plan in plans} == {(5000, 64)}
    told = FinetuneParameters(compile=True).model_dump(mode="json")
    assert told == FinetuneParameters().model_dump(mode="json")
    assert "compile" not in told
    json.dumps(told)
