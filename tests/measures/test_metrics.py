"""Metrics: worked examples of the protocol sheet, and what the definitions imply."""

import numpy as np
import pytest

from transferbench.measures.metrics import (
    average_precision_11,
    average_precisions_11,
    mean_per_class,
    per_class,
    predictions,
    score,
    top1,
    topk,
)

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 3, 2])


def test_a_class_that_is_predicted_but_absent_is_left_out():
    assert top1(LABELS, PREDICTED) == pytest.approx(4 / 6)
    assert mean_per_class(LABELS, PREDICTED) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert np.isnan(per_class(LABELS, PREDICTED, 4)[3])


def test_scores_and_predictions_give_the_same_metric():
    scores = np.random.RandomState(0).randn(50, 4)
    labels = np.random.RandomState(1).randint(0, 4, 50)
    for metric in ("top1", "mean_per_class"):
        assert score(metric, labels, scores) == score(metric, labels, scores.argmax(axis=1))
    assert predictions(np.array([[1.0, 1.0], [0.0, 1.0]])).tolist() == [0, 1]


def test_topk_counts_classes_above_the_labels():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    labels = np.array([0, 2, 2])
    assert [topk(labels, scores, k) for k in (1, 2, 3)] == pytest.approx([2 / 3, 2 / 3, 1])


def test_the_sheets_precision_with_a_difficult_item():
    truth = np.array([-1, 1, 1, -1, 1, -1, 0, -1])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert average_precision_11(truth, scores) == pytest.approx((7 * 2 / 3 + 4 * 3 / 5) / 11)
    assert average_precision_11(truth, scores, form="code") == pytest.approx(0.672727, abs=1e-6)


def test_a_perfect_ranking_has_precision_one_and_none_without_positives():
    truth = np.array([1, 1, 0, 0])
    assert average_precision_11(truth, np.array([4.0, 3, 2, 1])) == 1
    assert np.isnan(average_precision_11(np.zeros(4), np.arange(4.0)))


def test_classes_without_positives_are_left_out_of_the_mean():
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    scores = np.array([[3.0, 1], [2, 2], [1, 3]])
    assert score("map11", labels, scores) == average_precisions_11(labels, scores)[0]


def test_precision_agrees_with_the_definition_point_by_point():
    draw = np.random.RandomState(3)
    for _ in range(30):
        truth, scores = draw.randint(0, 2, 25), draw.randn(25)
        if not truth.any():
            continue
        order = np.argsort(-scores)
        found = np.cumsum(truth[order])
        recall, precision = found / found[-1], found / np.arange(1, 26)
        points = [
            max(
                (p for p, r in zip(precision, recall, strict=True) if r >= t / 10 - 1e-9), default=0
            )
            for t in range(11)
        ]
        assert average_precision_11(truth, scores) == pytest.approx(np.mean(points))
