"""The vote: exact neighbours, defined ties, the worked example."""

import numpy as np
import pytest

from transferbench.measures import neighbors
from transferbench.measures.neighbors import knn_scores, nearest_neighbors, unit_rows, vote


def test_the_sheets_vote():
    similarities = np.array([[0.95, 0.90, 0.90, 0.80, 0.70]])
    labels, indices = np.array([1, 0, 0, 0, 2]), np.arange(5)[None]

    def shares(k):
        found = vote(indices[:, :k], similarities[:, :k], labels, temperature=0.07, classes=3)
        return (found / found.sum())[0]

    assert shares(1).tolist() == [0, 1, 0]
    np.testing.assert_allclose(shares(3), [0.4947, 0.5053, 0], atol=1e-4)
    np.testing.assert_allclose(shares(5), [0.5161, 0.4707, 0.0132], atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 16_000_000])
@pytest.mark.parametrize("k", [1, 7, 40, 99])
def test_neighbours_are_those_of_a_full_stable_sort(monkeypatch, chunk, k):
    monkeypatch.setattr(neighbors, "CHUNK", chunk)
    draw = np.random.RandomState(0)
    # Few different rows, of exact lengths: ties everywhere.
    bank = np.eye(4)[draw.randint(0, 4, 40)]
    queries = np.eye(4)
    indices, similarities = nearest_neighbors(queries, bank, k)
    expected = np.argsort(-(queries @ bank.T), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, expected)
    assert indices.shape == similarities.shape == (4, min(k, 40))


def test_lengths_do_not_count_and_zeros_are_no_error():
    draw = np.random.RandomState(1)
    bank, queries = draw.randn(30, 5), draw.randn(6, 5)
    one = nearest_neighbors(queries, bank, 5)[0]
    two = nearest_neighbors(3 * queries, bank * draw.uniform(1, 9, (30, 1)), 5)[0]
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(nearest_neighbors(np.zeros((1, 5)), bank, 5)[1]).all()


def test_more_neighbours_than_images_are_all_images():
    draw = np.random.RandomState(2)
    bank, queries, labels = draw.randn(9, 3), draw.randn(4, 3), draw.randint(0, 3, 9)
    few, many = knn_scores(queries, bank, labels, ks=[9, 200], temperature=0.1, classes=4)
    np.testing.assert_array_equal(few, many)
    assert few.shape == (4, 4)
    assert not few[:, 3].any()


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 5e-324])
def test_no_temperature_overflows(temperature):
    similarities = np.array([[0.9, 0.8, 0.8], [-0.2, -0.3, -0.4]])
    labels, indices = np.array([2, 0, 0]), np.array([[0, 1, 2], [1, 0, 2]])
    found = vote(indices, similarities, labels, temperature=temperature, classes=3, relative=True)
    assert np.isfinite(found).all()
    assert found.argmax(axis=1).tolist() == [2, 0]


def test_a_large_bank_is_held_once():
    import tracemalloc

    bank = np.random.RandomState(0).randn(20_000, 64).astype(np.float32)
    length = np.linalg.norm(bank.astype(np.float64), axis=1, keepdims=True)
    tracemalloc.start()
    unit = unit_rows(bank)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.3 * unit.nbytes
    assert (unit == bank / length).all()
