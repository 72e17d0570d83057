"""Calibration, significance, correlation and episodes beyond the golden cases."""

import numpy as np
import pytest

from transferbench.measures.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    softmax,
)
from transferbench.measures.correlation import logit, spearman
from transferbench.measures.episodes import interval, nearest_mean
from transferbench.measures.significance import mcnemar, paired_bootstrap


def test_the_sheets_calibration_error():
    confidence = np.array([0.95, 0.95, 0.85, 0.85, 0.62, 0.61, 0.45, 0.34])
    correct = np.array([1, 1, 1, 0, 1, 0, 0, 1])
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.2675)


def test_a_temperature_is_a_minimum_and_its_limits_are_finite_or_told():
    draw = np.random.RandomState(0)
    logits, labels = 3 * draw.randn(80, 4), draw.randint(0, 4, 80)
    best = fit_temperature(logits, labels)
    losses = [negative_log_likelihood(logits / (best * f), labels) for f in (0.99, 1, 1.01)]
    assert losses[1] == min(losses)
    assert 1e-4 <= fit_temperature(logits, logits.argmax(axis=1)) < 1e-2
    assert fit_temperature(logits, logits.argmin(axis=1)) == np.inf


def test_the_sheets_bootstrap_and_mcnemar():
    a = np.array([1, 1, 1, 1, 0, 1, 1, 0, 1, 1])
    b = np.array([1, 0, 1, 1, 0, 0, 1, 1, 0, 1])
    found = paired_bootstrap(a, b, seed=0, resamples=1000)
    assert (found.difference, found.low, found.high) == pytest.approx((0.2, -0.2, 0.6))
    assert found.p == pytest.approx(0.3856, abs=1e-4)
    test = mcnemar(a, b)
    assert (test.b, test.c, test.exact_p) == (3, 1, pytest.approx(0.625))


def test_equal_models_do_not_differ():
    same = np.array([1, 0, 1])
    assert mcnemar(same, same).exact_p == 1
    assert paired_bootstrap(same, same, seed=0).p == 1


def test_shares_of_none_and_all_are_clipped_by_the_number_of_images():
    assert logit([0.0, 1.0], samples=50) == pytest.approx([np.log(1 / 99), np.log(99)])
    assert np.isinf(logit([0.0, 1.0])).all()


def test_ties_share_a_rank():
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)


def test_the_sheets_interval():
    accuracies = [80, 76, 84, 72, 88]
    assert interval(accuracies) == pytest.approx((80, 4.9585), abs=1e-4)
    assert interval(accuracies, ddof=1)[1] == pytest.approx(5.5437, abs=1e-4)


def test_queries_at_a_class_mean_are_of_that_class():
    support = np.array([[0.0, 0], [2, 0], [10, 0], [12, 0]])
    found = nearest_mean(support, [0, 0, 1, 1], np.array([[1.0, 0], [11, 0]]), [0, 1])
    assert found.accuracy == 1
    np.testing.assert_allclose(found.distances, [[0, 100], [100, 0]])


def test_a_temperature_is_where_scipy_finds_it_even_where_rounding_decides():
    from scipy.optimize import brentq

    for seed in (*range(20), 306):
        draw = np.random.RandomState(seed)
        classes, n = draw.randint(2, 12), draw.randint(3, 300)
        labels = draw.randint(0, classes, n)
        logits = draw.randn(n, classes) * 10 ** draw.uniform(-6, 6)
        logits[np.arange(n), labels] += draw.uniform(0, 2) * logits.std()
        own = logits[np.arange(n), labels]

        def slope(sharpness, logits=logits, own=own):
            return np.mean((softmax(sharpness * logits) * logits).sum(axis=1) - own)

        found = fit_temperature(logits, labels)
        if np.isfinite(found) and found > 1e-4:
            high = 2.0 ** np.ceil(np.log2(max(1.0, 2 / found)))
            assert found == pytest.approx(1 / brentq(slope, 0, high, xtol=1e-18), rel=1e-8)
