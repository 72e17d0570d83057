"""Golden cases of evaluation: protocol/*, and the vote and top-k of other files."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.harness import golden
from transferbench.measures import calibration, correlation, episodes, metrics, significance
from transferbench.measures.neighbors import knn_scores
from transferbench.protocols import grids
from transferbench.protocols.linear import select, validation_curve
from transferbench.protocols.logistic import fit_path

PUBLISHED = Path(__file__).parents[3] / "shared" / "published"
EXACT = 1e-16


def arrays(inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in inputs.items()}


@golden("protocol/metric/top1")
def top1_case(inputs, params, key):
    x = arrays(inputs)
    chosen = metrics.predictions(x["logits"])
    return {"predictions": chosen, "top1": 100 * metrics.score("top1", x["labels"], x["logits"])}


@golden("protocol/metric/mean-per-class-absent")
def mean_per_class_case(inputs, params, key):
    x = arrays(inputs)
    recall = metrics.per_class(x["labels"], x["predictions"], params["classes"])
    return {
        "per_class": [None if np.isnan(value) else value for value in recall],
        "mean_per_class": 100 * metrics.score("mean_per_class", x["labels"], x["predictions"]),
        "top1": 100 * metrics.score("top1", x["labels"], x["predictions"]),
    }


@golden("protocol/metric/voc-ap11")
def average_precision_case(inputs, params, key):
    from sklearn.metrics import average_precision_score

    x = arrays(inputs)
    gt, scores = x["gt"], x["scores"]
    sure = gt != 0
    return {
        # The file compares recalls exactly; only its float-edge case has the tolerance.
        "devkit": metrics.average_precision_11(gt, scores, tolerance=0.0),
        "code_form": metrics.average_precision_11(gt, scores, form="code"),
        "code_form_without_difficult": metrics.average_precision_11(
            gt[sure], scores[sure], form="code"
        ),
        "step_ap": average_precision_score(gt > 0, scores),
    }


@golden("protocol/metric/voc-ap11-float-edge")
def average_precision_edge_case(inputs, params, key):
    x = arrays(inputs)
    return {
        "exact": metrics.average_precision_11(x["gt"], x["scores"], tolerance=0.0),
        "tolerant": metrics.average_precision_11(x["gt"], x["scores"]),
    }


@golden("supervised/metric/top-k")
def topk_case(inputs, params, key):
    x = arrays(inputs)
    return [100 * metrics.topk(x["labels"], x["logits"], k) for k in params["k"]]


@golden("protocol/calibration/ece15")
def calibration_case(inputs, params, key):
    x = arrays(inputs)
    correct = x["probabilities"].argmax(axis=1) == x["labels"]
    error = calibration.expected_calibration_error(
        x["probabilities"].max(axis=1), correct, bins=params["bins"]
    )
    return {"ece": error}


@golden("protocol/calibration/ece-edges")
def calibration_edges_case(inputs, params, key):
    x = arrays(inputs)
    return {
        f"{side}_closed": calibration.expected_calibration_error(
            x["confidence"], x["correct"], bins=params["bins"], closed=side
        )
        for side in ("right", "left")
    }


@golden("protocol/calibration/temperature")
def temperature_case(inputs, params, key):
    x = arrays(inputs)
    logits, labels, bins = x["logits"], x["labels"], params["bins"]
    temperature = calibration.fit_temperature(logits, labels)
    return {
        "T": temperature,
        "nll_before": calibration.negative_log_likelihood(logits, labels),
        "nll_after": calibration.negative_log_likelihood(logits / temperature, labels),
        "ece_before": calibration.logits_error(logits, labels, bins=bins),
        "ece_after": calibration.logits_error(logits / temperature, labels, bins=bins),
    }


@golden("protocol/calibration/five-fold")
def five_fold_case(inputs, params, key):
    x = arrays(inputs)
    found = calibration.five_fold(x["logits"], x["labels"], **params)
    return {
        "unscaled": found.unscaled,
        "T": found.temperatures,
        "scaled_per_fold": found.errors,
        "scaled": found.scaled,
    }


@golden("protocol/fewshot/episode")
def episode_case(inputs, params, key):
    x = arrays(inputs)
    ways = params["ways"]
    centres = x["class_centres"][:, None, :]
    width = centres.shape[-1]
    found = episodes.nearest_mean(
        (x["support_noise"] + centres).reshape(-1, width),
        np.repeat(np.arange(ways), params["shots"]),
        (x["query_noise"] + centres).reshape(-1, width),
        np.repeat(np.arange(ways), params["queries_per_class"]),
    )
    return {
        "accuracy": found.accuracy,
        "loss": found.loss,
        "distances_first": found.distances[0],
    }


@golden("protocol/fewshot/interval")
def interval_case(inputs, params, key):
    accuracies = np.asarray(inputs["accuracies"])
    mean, half = episodes.interval(accuracies)
    return {
        "mean": mean,
        "half_width": half,
        "half_width_ddof1": episodes.interval(accuracies, ddof=1)[1],
    }


@golden("protocol/knn/weighted-vote")
def weighted_vote_case(inputs, params, key):
    x = arrays(inputs)
    found = knn_scores(
        x["query"],
        x["train"],
        x["train_labels"],
        ks=params["k"],
        temperature=params["T"],
        classes=params["classes"],
    )
    return {
        f"k{k}": {
            "votes_over_total": scores / scores.sum(axis=1, keepdims=True),
            "predictions": metrics.predictions(scores),
        }
        for k, scores in zip(params["k"], found, strict=True)
    }


@golden("common/knn-vote")
def common_vote_case(inputs, params, key):
    x = arrays(inputs)
    (scores,) = knn_scores(
        x["q"],
        x["bank"],
        x["labels"],
        ks=[params["k"]],
        temperature=params["T"],
        classes=params["classes"],
    )
    return {"scores": scores, "prediction": metrics.predictions(scores)}


@golden("protocol/significance/paired-bootstrap")
def paired_bootstrap_case(inputs, params, key):
    x = arrays(inputs)
    found = significance.paired_bootstrap(
        x["correct_a"],
        x["correct_b"],
        seed=params["bootstrap_seed"],
        resamples=params["resamples"],
    )
    return vars(found)


@golden("protocol/significance/mcnemar")
def mcnemar_case(inputs, params, key):
    x = arrays(inputs)
    return vars(significance.mcnemar(x["correct_a"], x["correct_b"]))


@golden("protocol/correlation/logit")
def logit_case(inputs, params, key):
    x = arrays(inputs)
    a, b = correlation.logit(x["x"]), correlation.logit(x["y"])
    return {
        "pearson": correlation.pearson(a, b),
        "spearman": correlation.spearman(a, b),
        "raw_pearson": correlation.pearson(x["x"], x["y"]),
    }


@golden("protocol/correlation/table1-")
def table1_case(inputs, params, key):
    if not PUBLISHED.is_dir():
        pytest.skip("the published tables are not beside this checkout (../shared/published)")

    def table(name: str) -> list[dict[str, str]]:
        with (PUBLISHED / f"table1_{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    rows = table(key.rpartition("-")[2])
    imagenet = {row["method"]: float(row["imagenet"]) for row in table("linear")}
    sets = [name for name in rows[0] if name not in ("method", "imagenet", "avg")]
    x = correlation.logit([imagenet[row["method"]] / 100 for row in rows])
    y = correlation.logit([[float(row[name]) / 100 for name in sets] for row in rows]).mean(axis=1)
    own = np.array([row["method"] != "Supervised" for row in rows])
    return {
        "pearson_14": correlation.pearson(x, y),
        "spearman_14": correlation.spearman(x, y),
        "pearson_13": correlation.pearson(x[own], y[own]),
        "spearman_13": correlation.spearman(x[own], y[own]),
    }


@golden("protocol/logreg/multinomial")
def multinomial_case(inputs, params, key):
    x = arrays(inputs)
    path = fit_path(x["X"], x["y"], params["weight_decay"], classes=params["classes"], tol=EXACT)
    return {
        f"wd_{point.weight_decay:g}": {
            "C": 1 / point.weight_decay,
            "objective": point.objective,
            "W_frobenius": np.linalg.norm(point.weights),
            "intercept_centred": point.intercepts - point.intercepts.mean(),
            "W_first_row": point.weights[0],
            "test_top1": 100 * metrics.score("top1", x["y_test"], point.scores(x["X_test"])),
            "train_top1": 100 * metrics.score("top1", x["y"], point.scores(x["X"])),
        }
        for point in path.points
    }


@golden("protocol/logreg/multilabel")
def multilabel_case(inputs, params, key):
    x = arrays(inputs)
    decays, labels = params["weight_decay"], range(x["Y"].shape[1])
    together = fit_path(x["X"], x["Y"], decays, task="multilabel", tol=EXACT)
    alone = [fit_path(x["X"], x["Y"][:, [k]], decays, task="multilabel", tol=EXACT) for k in labels]
    # The two-row form of the paper's code is the softmax of two classes.
    two_rows = [fit_path(x["X"], x["Y"][:, k], decays, classes=2, tol=EXACT) for k in labels]
    result = {}
    for i, decay in enumerate(decays):
        scores = together.points[i].scores(x["X_test"])
        one = [
            {
                "objective": alone[k].points[i].objective,
                "w_norm": np.linalg.norm(together.points[i].weights[k]),
                "intercept": together.points[i].intercepts[k],
                "ap_code_form": metrics.average_precision_11(
                    x["Y_test"][:, k], scores[:, k], form="code"
                ),
                "ap_devkit": metrics.average_precision_11(
                    x["Y_test"][:, k], scores[:, k], tolerance=0.0
                ),
            }
            for k in labels
        ]
        two = [
            {
                "objective": path.points[i].objective,
                "row1_norm": np.linalg.norm(path.points[i].weights[1]),
                "row1_intercept": path.points[i].intercepts[1],
                "ap_code_form": metrics.average_precision_11(
                    x["Y_test"][:, k], path.points[i].scores(x["X_test"])[:, 1], form="code"
                ),
            }
            for k, path in enumerate(two_rows)
        ]
        result[f"wd_{decay:g}"] = {
            "one_row": one,
            "two_row": two,
            "one_row_map": 100 * np.mean([row["ap_code_form"] for row in one]),
            "two_row_map": 100 * np.mean([row["ap_code_form"] for row in two]),
        }
    return result


@golden("protocol/logreg/sweep")
def sweep_case(inputs, params, key):
    x = arrays(inputs)
    decays = grids.weight_decays(-2, 3, 11)
    path = fit_path(x["X"], x["y"], decays, classes=params["classes"], tol=EXACT)
    curve = validation_curve(path, x["X_val"], x["y_val"], "top1")
    best = select(curve)
    final = fit_path(
        np.concatenate([x["X"], x["X_val"]]),
        np.concatenate([x["y"], x["y_val"]]),
        [decays[best]],
        classes=params["classes"],
        tol=EXACT,
    ).points[0]
    return {
        "val_top1": [100 * value for value in curve],
        "chosen_index": best,
        "chosen_wd": decays[best],
        "test_top1": 100 * metrics.score("top1", x["y_test"], final.scores(x["X_test"])),
    }


@golden("protocol/grid/weight-decay-to-C")
def weight_decay_case(inputs, params, key):
    decays = grids.weight_decays(**params)
    shown = [decays[i] for i in (0, len(decays) // 2, -1)]
    inverse = [1 / decay for decay in shown]
    return {"wd": shown, "C": inverse, "C_exact": inverse}


@golden("protocol/grid/finetune")
def finetune_grid_case(inputs, params, key):
    return {"pairs": grids.finetune_pairs(params["lr"], params["base_decay"])}
