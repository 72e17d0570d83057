"""Bootstrap errors: equal to resampling image by image, and of the right size."""

import numpy as np
import pytest

from transferbench.measures import uncertainty
from transferbench.measures.metrics import score
from transferbench.measures.uncertainty import bootstrap_error, bootstrap_scores


def case(metric, n=60, classes=3, seed=0):
    draw = np.random.RandomState(seed)
    outputs = draw.randn(n, classes)
    if metric == "map11":
        return (draw.uniform(size=(n, classes)) < 0.3).astype(np.uint8), outputs
    return draw.randint(0, classes, n), outputs


@pytest.mark.parametrize("difficult", [False, True])
@pytest.mark.parametrize("metric", ["top1", "mean_per_class", "map11"])
def test_counts_give_the_metric_of_the_repeated_images(metric, difficult):
    labels, outputs = case(metric)
    if metric == "map11":
        outputs = np.round(outputs, 1)  # with ties
        if difficult:
            # A third of what is not positive stays 0, beside -1.
            labels = labels.astype(np.int8)
            labels[(labels == 0) & (np.arange(60) % 3 > 0)[:, None]] = -1
    found = bootstrap_scores(metric, labels, outputs, seed=5, resamples=20)
    counts = np.concatenate(list(uncertainty._resamples(60, 20, 5)))
    assert (counts.sum(axis=1) == 60).all()
    for value, count in zip(found, counts, strict=True):
        drawn = np.repeat(np.arange(60), count)
        assert value == pytest.approx(score(metric, labels[drawn], outputs[drawn]), abs=1e-12)


def test_the_error_of_an_accuracy_is_binomial():
    labels = np.zeros(400, dtype=int)
    predicted = (np.arange(400) >= 300).astype(int)
    error = bootstrap_error("top1", labels, predicted, seed=0)
    assert error == pytest.approx(np.sqrt(0.75 * 0.25 / 400), rel=0.1)


def test_the_error_follows_the_seed_and_not_the_size_of_the_chunks(monkeypatch):
    labels, outputs = case("mean_per_class")
    first = bootstrap_error("mean_per_class", labels, outputs, seed=1)
    assert first == bootstrap_error("mean_per_class", labels, outputs, seed=1)
    assert first != bootstrap_error("mean_per_class", labels, outputs, seed=2)
    monkeypatch.setattr(uncertainty, "CHUNK", 700)
    assert first == pytest.approx(bootstrap_error("mean_per_class", labels, outputs, seed=1))


def test_a_class_that_a_resample_misses_is_left_out_of_it():
    labels = np.array([0] * 30 + [1])
    scores = bootstrap_scores("mean_per_class", labels, labels, seed=0, resamples=200)
    assert (scores == 1).all()
