"""The linear probe and the vote: what they read, in which order, and what they report."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.protocols.stubs import make_backbone, make_dataset
from transferbench.errors import UserError
from transferbench.measures.metrics import score
from transferbench.protocols import linear as linear_module
from transferbench.protocols.knn import KNN, KNNParameters
from transferbench.protocols.linear import Linear, LinearParameters, select
from transferbench.storage import canonical_json

SHORT = LinearParameters(start=-3, stop=3, count=7, resamples=100)

pytestmark = pytest.mark.usefixtures("fresh_cache")


def run(protocol, dataset, parameters, backbone=None, seed=0):
    backbone = backbone or make_backbone()
    return protocol.run(backbone, dataset, parameters, seed=seed, device="cpu")


@pytest.mark.parametrize(
    ("protocol", "parameters"), [(Linear(), SHORT), (KNN(), KNNParameters(resamples=100))]
)
def test_the_test_split_is_read_once_and_last(protocol, parameters):
    log: list[str] = []
    outcome = run(protocol, make_dataset(log), parameters)
    first = log.index("test")
    assert log.count("test") == log.count("test.pixels") == log.count("test.labels") == 1
    assert not any(entry.startswith(("train", "val")) for entry in log[first:])
    assert outcome.n == 80


def test_the_test_split_is_read_after_every_fit(monkeypatch):
    log: list[str] = []
    from transferbench.protocols import logistic

    real = logistic.fit_path
    monkeypatch.setattr(logistic, "fit_path", lambda *a, **k: (log.append("fit"), real(*a, **k))[1])
    run(Linear(), make_dataset(log), SHORT)
    assert log.count("fit") == 2
    assert log.index("test") > max(i for i, entry in enumerate(log) if entry == "fit")


@pytest.mark.parametrize(
    ("task", "metric"),
    [("multiclass", "top1"), ("multiclass", "mean_per_class"), ("multilabel", "map11")],
)
def test_linear_reports_the_sets_own_metric_with_everything_chosen(task, metric):
    dataset = make_dataset(task=task, metric=metric)
    outcome = run(Linear(), dataset, SHORT)
    details = outcome.details
    curve = details["validation_curve"]
    assert outcome.metric == metric
    assert outcome.value > 0.7
    assert 0 < outcome.standard_error < 0.1
    assert details["chosen"] == curve.index(max(curve))
    assert details["weight_decay"] == details["weight_decays"][details["chosen"]]
    assert details["weight_decays"] == pytest.approx([10.0**i for i in range(-3, 4)])
    assert details["on_edge"] == (details["chosen"] in (0, 6))
    assert (details["train"], details["validation"], details["dimension"]) == (160, 60, 6)
    assert details["converged"] is True
    assert max(details["sweep"]["relative_gap"]) <= 1e-4
    assert len(details["sweep"]["iterations"]) == len(details["sweep"]["gradient_norm"]) == 7
    assert set(outcome.cost) == {"features", "sweep", "refit", "test"}
    canonical_json(details)
    truth = dataset.splits["test"].labels
    assert score(metric, truth, outcome.predictions) == outcome.value
    assert outcome.predictions.shape == ((80,) if task == "multiclass" else (80, 4))


def test_the_refit_uses_train_and_validation_with_the_chosen_weight_decay():
    dataset = make_dataset()
    outcome = run(Linear(), dataset, SHORT)
    from transferbench.protocols.features import gather
    from transferbench.protocols.logistic import fit_path

    features, labels = gather(make_backbone(), dataset, ("train", "val"))
    assert len(features) == 220
    point = fit_path(features, labels, [outcome.details["weight_decay"]], tol=1e-4).points[0]
    assert outcome.details["refit"]["objective"] == pytest.approx(point.objective, rel=2e-4)
    test, truth = gather(make_backbone(), dataset, ("test",))
    assert outcome.value == pytest.approx(score("top1", truth, point.scores(test)))


def test_labels_without_meaning_are_not_learned():
    sizes = {"train": 300, "val": 200, "test": 400}
    told = make_dataset(sizes=sizes)
    untold = make_dataset(sizes=sizes, shuffled=True)
    assert run(Linear(), told, SHORT).value > 0.75
    assert run(KNN(), told, KNNParameters(resamples=100)).value > 0.75
    # Chance is 1/4; four standard errors of 400 images are 0.087.
    assert abs(run(Linear(), untold, SHORT).value - 0.25) < 0.087
    assert abs(run(KNN(), untold, KNNParameters(resamples=100)).value - 0.25) < 0.087


def test_without_a_validation_split_a_fifth_of_train_serves():
    outcome = run(Linear(), make_dataset(sizes={"train": 203, "test": 50}), SHORT)
    assert (outcome.details["train"], outcome.details["validation"]) == (163, 40)


def test_nothing_but_the_bootstrap_depends_on_the_seed():
    dataset = make_dataset()
    outcomes = [run(Linear(), dataset, SHORT, seed=seed) for seed in (0, 0, 1)]
    assert outcomes[0].standard_error == outcomes[1].standard_error
    assert outcomes[0].standard_error != outcomes[2].standard_error
    assert outcomes[0].value == outcomes[2].value
    assert outcomes[0].details == outcomes[2].details


def test_ties_go_to_the_weakest_penalty():
    assert select([0.5, 0.7, 0.7, 0.2]) == 1
    assert select([0.0, 0.0]) == 0
    assert select([float("nan"), 0.1]) == 1
    assert select([float("nan"), float("nan")]) == 0


def test_knn_votes_with_train_and_validation_and_reports_other_k_beside():
    dataset = make_dataset()
    outcome = run(KNN(), dataset, KNNParameters(k=5, also=(1, 5, 1000)))
    assert outcome.details["bank"] == 220
    assert set(outcome.details["by_k"]) == {"1", "5", "1000"}
    assert outcome.details["by_k"]["5"]["value"] == outcome.value
    assert outcome.details["by_k"]["5"]["standard_error"] == outcome.standard_error
    assert all(0 < told["standard_error"] < 0.1 for told in outcome.details["by_k"].values())
    assert score("top1", dataset.splits["test"].labels, outcome.predictions) == outcome.value
    canonical_json(outcome.details)


def test_where_the_protocols_apply():
    many = make_dataset(task="multilabel", metric="map11").card
    one = make_dataset().card
    assert Linear().applies_to(many)
    assert Linear().applies_to(one)
    assert KNN().applies_to(one)
    assert not KNN().applies_to(many)


def test_a_class_without_training_images_is_a_class_still():
    dataset = make_dataset(classes=5)
    for name in ("train", "val"):
        labels = dataset.splits[name].labels
        labels[labels == 2] = 1
    outcome = run(Linear(), dataset, SHORT)
    assert 2 not in outcome.predictions
    assert outcome.value > 0.4


def test_equal_labels_are_refused_with_the_sets_name():
    dataset = make_dataset()
    for name in ("train", "val"):
        dataset.splits[name].labels[:] = 3
    with pytest.raises(UserError, match="'colors': all 160 training labels are equal"):
        run(Linear(), dataset, SHORT)


@pytest.mark.parametrize(
    "values", [{"start": 2, "stop": 1}, {"count": 0}, {"tol": 0}, {"penalty": 3}, {"start": "x"}]
)
def test_parameters_are_checked(values):
    with pytest.raises(ValidationError):
        LinearParameters.model_validate(values)


def test_defaults_are_the_papers():
    assert LinearParameters() == LinearParameters(start=-6, stop=5, count=45, tol=1e-4)
    assert (KNNParameters().k, KNNParameters().temperature) == (20, 0.07)
    assert linear_module.Linear.Parameters is LinearParameters


def test_protocols_import_without_the_heavy_packages():
    heavy = ["torch", "timm", "sklearn", "datasets", "pandas", "pyarrow", "scipy", "matplotlib"]
    code = (
        "import json, sys\n"
        "from transferbench import registry\n"
        "for name in registry.names('protocols'):\n"
        "    registry.load('protocols', name).Parameters()\n"
        "print(json.dumps(sorted(set(sys.modules) & set(json.loads(sys.argv[1])))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(heavy)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


@pytest.mark.slow
def test_a_real_backbone_on_real_flowers(shared_data):
    """Sanity numbers of the set's README: 82.4 by kNN and 87.1 by one untuned penalty at 160 px."""
    from transferbench.backbones.reference import parse_reference
    from transferbench.data.sources import find_source

    file = shared_data.parent / "backbones" / "tf_efficientnet_lite0.safetensors"
    backbone = parse_reference(f"file:{file}@tf_efficientnet_lite0", seed=0).load("cpu")
    dataset = find_source("flowers17", data_root=shared_data).load()
    linear = run(Linear(), dataset, LinearParameters(), backbone)
    knn = run(KNN(), dataset, KNNParameters(), backbone)
    assert np.round(linear.value, 2) > 0.87
    assert knn.value > 0.8
    assert linear.details["converged"]


@pytest.mark.parametrize("also", [(0,), (10, -3)])
def test_no_neighbours_cannot_vote(also):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        KNN.Parameters(also=also)


def test_at_a_temperature_near_zero_the_nearest_neighbour_decides():
    def by_k(temperature):
        parameters = KNN.Parameters(temperature=temperature, also=(1,), resamples=2)
        outcome = KNN().run(
            make_backbone(), make_dataset(noise=60.0), parameters, seed=0, device="cpu"
        )
        return outcome.details["by_k"]

    assert by_k(0.07)["1"] != by_k(0.07)["20"]
    assert by_k(1e-9)["1"] == by_k(1e-9)["20"]


PAPER = LinearParameters(mode="paper", start=-3, stop=3, count=7, resamples=100)


@pytest.mark.parametrize(
    ("task", "metric"), [("multiclass", "mean_per_class"), ("multilabel", "map11")]
)
def test_mode_paper_stops_short_and_says_how_far(task, metric):
    dataset = make_dataset(task=task, metric=metric)
    outcome = run(Linear(), dataset, PAPER)
    sweep, refit = outcome.details["sweep"], outcome.details["refit"]
    assert outcome.details["mode"] == "paper"
    assert outcome.details["weight_decays"] == [float(np.float32(10.0**i)) for i in range(-3, 4)]
    assert len(sweep["relative_excess"]) == 7
    assert "relative_gap" not in sweep
    assert all(
        -2e-4 < excess < 2 for excess in [*sweep["relative_excess"], refit["relative_excess"]]
    )
    # Six features and a handful of classes: a hundred iterations come close.
    assert min(sweep["relative_excess"]) < 1e-3
    assert outcome.value == pytest.approx(run(Linear(), dataset, SHORT).value, abs=0.05)
    canonical_json(outcome.details)
    form = {"form": "code"} if task == "multilabel" else {}
    truth = dataset.splits["test"].labels
    assert score(metric, truth, outcome.predictions, **form) == outcome.value
    if task == "multilabel":
        assert score(metric, truth, outcome.predictions) != outcome.value


def test_a_single_penalty_starts_from_zeros_in_mode_paper(monkeypatch):
    from transferbench.protocols import lbfgs

    starts = []
    real = lbfgs.stopped_path

    def watched(*arguments, start=None, **options):
        starts.append(start)
        return real(*arguments, start=start, **options)

    monkeypatch.setattr(lbfgs, "stopped_path", watched)
    run(Linear(), make_dataset(), PAPER)
    assert starts[0] is None
    assert starts[1].weight_decay == pytest.approx(1000)
    starts.clear()
    run(Linear(), make_dataset(), PAPER.model_copy(update={"start": 0.0, "count": 1}))
    assert starts == [None, None]


@pytest.mark.parametrize("parameters", [SHORT, PAPER])
def test_a_killed_sweep_goes_on_with_the_next_penalty(parameters, monkeypatch, fresh_cache):
    from transferbench.protocols.kept import KeptPoints

    dataset = make_dataset()
    whole = run(Linear(), dataset, parameters)
    assert not list(fresh_cache.glob("sweeps/*"))
    kept: list[int] = []
    write = KeptPoints.write

    def killed(self, index, point):
        write(self, index, point)
        kept.append(index)
        if len(kept) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeptPoints, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(Linear(), dataset, parameters)
    files = {int(f.stem.rpartition("-")[2]): f for f in fresh_cache.glob("sweeps/*.npz")}
    assert set(files) == set(kept)
    # A file cut short is solved again rather than believed.
    files[kept[-1]].write_bytes(files[kept[-1]].read_bytes()[:-50])
    again: list[int] = []

    def counted(self, index, point):
        again.append(index)
        write(self, index, point)

    with monkeypatch.context() as patch:
        patch.setattr(KeptPoints, "write", counted)
        rest = run(Linear(), dataset, parameters)
    sweep = again[:4]
    assert sorted([*kept[:3], *sweep]) == list(range(7))
    if parameters.mode == "paper":
        assert rest.details["sweep"] == whole.details["sweep"]
        assert (rest.predictions == whole.predictions).all()
    assert rest.value == pytest.approx(whole.value, abs=1e-3)
    assert rest.details["validation_curve"] == pytest.approx(
        whole.details["validation_curve"], abs=0.02
    )


def test_features_that_no_digest_identifies_keep_no_sweep(monkeypatch, fresh_cache):
    from dataclasses import replace

    backbone = replace(make_backbone(), cacheable=False)
    run(Linear(), make_dataset(), SHORT, backbone)
    assert not (fresh_cache / "sweeps").exists()


def test_calibration_is_fitted_on_validation_and_measured_on_test():
    from transferbench.measures.calibration import fit_temperature, logits_error
    from transferbench.protocols.features import gather
    from transferbench.protocols.logistic import fit_path

    dataset = make_dataset(noise=60.0)
    told = run(Linear(), dataset, SHORT).details
    found = told["calibration"]
    features, labels = gather(make_backbone(), dataset, ("train", "val"))
    test, truth = gather(make_backbone(), dataset, ("test",))
    decay = [told["weight_decay"]]
    sweep = fit_path(features[:160], labels[:160], decay, tol=1e-8).points[0]
    final = fit_path(features, labels, decay, tol=1e-8).points[0].scores(test)
    temperature = fit_temperature(sweep.scores(features[160:]), labels[160:])
    assert (found["bins"], found["fitted_on"]) == (15, "validation")
    assert found["temperature"] == pytest.approx(temperature, rel=0.02)
    assert found["ece"] == pytest.approx(logits_error(final, truth), abs=0.01)
    assert found["ece_scaled"] == pytest.approx(logits_error(final / temperature, truth), abs=0.01)


def test_mode_paper_calibrates_on_fifths_of_test():
    from transferbench.measures.calibration import five_fold
    from transferbench.protocols.linear import calibration_on_test

    draw = np.random.RandomState(0)
    truth = draw.randint(0, 4, 80)
    scores = draw.randn(80, 4) + 2 * np.eye(4)[truth]
    told = calibration_on_test(scores, truth)
    expected = five_fold(scores, truth)
    assert (told["fitted_on"], told["ece"]) == ("fifths of test", expected.unscaled)
    assert told["ece_scaled"] == expected.scaled
    assert calibration_on_test(scores[:4], truth[:4]) is None
    details = run(Linear(), make_dataset(), PAPER).details
    assert details["calibration"]["fitted_on"] == "fifths of test"
    assert (
        "calibration"
        not in run(Linear(), make_dataset(task="multilabel", metric="map11"), SHORT).details
    )


def test_few_labels_are_used_alone_and_drawn_by_the_seed():
    dataset = make_dataset(sizes={"train": 400, "val": 100, "test": 100}, noise=60.0)
    few = LinearParameters(start=-3, stop=3, count=3, resamples=10, labels=40)
    outcomes = [run(Linear(), dataset, few, seed=seed) for seed in (0, 0, 1)]
    assert (outcomes[0].details["train"], outcomes[0].details["validation"]) == (32, 8)
    assert outcomes[0].details == outcomes[1].details
    assert outcomes[0].details != outcomes[2].details
    share = few.model_copy(update={"labels": 0.08})
    assert run(Linear(), dataset, share).details["sweep"] == outcomes[0].details["sweep"]
    with pytest.raises(UserError, match="labels = 3 is 3 of the 500 training images of 'colors'"):
        run(Linear(), dataset, few.model_copy(update={"labels": 3}))


@pytest.mark.parametrize("labels", [1, 0, -3, 0.0, 1.5, True, "few"])
def test_labels_are_a_count_or_a_share(labels):
    with pytest.raises(ValidationError, match="write a count of 2 or more, as 100, or a share"):
        LinearParameters.model_validate({"labels": labels})
    assert type(LinearParameters(labels=1.0).labels) is float
    assert type(LinearParameters(labels=2).labels) is int


@pytest.mark.parametrize("protocol", [Linear(), KNN()])
def test_features_that_are_all_equal_are_refused(protocol):
    class Constant(torch.nn.Module):
        def forward(self, images):
            return torch.ones(len(images), 3)

    with pytest.raises(UserError, match="pool gives all 220 training images of 'colors' the same"):
        run(protocol, make_dataset(), protocol.Parameters(), make_backbone(Constant()))
