"""Geometry of features in cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from transferbench.measures import geometry


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(size: int) -> np.ndarray:
    return np.linalg.qr(normal(size, size, seed=9))[0]


def test_rankme_counts_equal_directions() -> None:
    features = np.zeros((40, 8))
    features[:, :3] = np.linalg.qr(normal(40, 3))[0]
    assert geometry.rankme(features) == pytest.approx(3, abs=1e-3)
    assert geometry.rankme(100 * features @ orthogonal(8)) == pytest.approx(3, abs=1e-3)
    assert geometry.rankme(np.zeros((5, 3))) == 0


def test_rankme_takes_more_dimensions_than_rows() -> None:
    assert geometry.rankme(normal(6, 50)) < 6.001


def test_feature_std_is_that_of_the_sphere_or_nothing() -> None:
    assert geometry.feature_std(normal(4000, 64)) == pytest.approx(1 / 8, rel=0.01)
    assert geometry.feature_std(np.ones((10, 64))) == pytest.approx(0)
    scale = np.random.default_rng(1).uniform(0.1, 9, (50, 1))
    rows = normal(50, 6)
    assert geometry.feature_std(scale * rows) == pytest.approx(geometry.feature_std(rows))


def test_usage_entropy_reaches_from_one_cluster_to_all() -> None:
    assert geometry.usage_entropy(np.eye(7)) == pytest.approx(1)
    assert geometry.usage_entropy(np.tile(np.eye(7)[2], (5, 1))) == 0
    assert geometry.usage_entropy(np.eye(4)[[0, 0, 1, 1]]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="negative"):
        geometry.usage_entropy([[-1.0, 2.0]])


def test_alignment_and_uniformity_of_simple_sets() -> None:
    corners = np.eye(5)
    assert geometry.alignment(corners, corners) == 0
    assert geometry.alignment(corners, -corners) == pytest.approx(4)
    assert geometry.alignment(corners, -corners, alpha=1) == pytest.approx(2)
    assert geometry.uniformity(corners) == pytest.approx(-4)
    assert geometry.uniformity(np.tile(corners[0], (4, 1))) == pytest.approx(0)
    with pytest.raises(ValueError, match="two rows"):
        geometry.uniformity(corners[:1])


def test_uniformity_in_blocks_equals_all_pairs_at_once() -> None:
    rows = normal(3000, 4)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    tensor = torch.from_numpy(rows)
    expected = torch.pdist(tensor).square().mul(-2).exp().mean().log()
    assert geometry.uniformity(tensor) == pytest.approx(float(expected), rel=1e-9)


def test_cka_ignores_rotation_scale_and_shift() -> None:
    x = normal(30, 6)
    assert geometry.linear_cka(x, 3 * x @ orthogonal(6) + 5) == pytest.approx(1)
    assert geometry.linear_cka(x, normal(30, 4, seed=2)) < 0.5
    assert geometry.linear_cka(x, np.ones((30, 2))) == 0
    with pytest.raises(ValueError, match="same images"):
        geometry.linear_cka(x, x[:-1])


def test_lidar_counts_what_tells_images_apart() -> None:
    centers = np.zeros((200, 1, 6))
    centers[:, 0, :2] = 50 * normal(200, 2)
    assert geometry.lidar(centers + 0.1 * normal(200, 3, 6, seed=3)) == pytest.approx(2, abs=0.1)
    with pytest.raises(ValueError, match="Q >= 2"):
        geometry.lidar(normal(4, 1, 3))


def test_lidar_of_equal_images_is_nothing() -> None:
    assert geometry.lidar(np.tile(normal(1, 3, 4), (5, 1, 1))) <= 1.001


def test_logme_prefers_features_that_hold_the_labels() -> None:
    labels = np.arange(60) % 3
    informed = np.eye(3)[labels] + 0.1 * normal(60, 3)
    assert geometry.logme(informed, labels) > geometry.logme(normal(60, 3), labels) + 0.5
    more = geometry.logme(informed, labels, classes=4)
    assert math.isfinite(more)
    with pytest.raises(ValueError, match="labels"):
        geometry.logme(informed, labels[:-1])


def test_shapes_are_checked() -> None:
    for wrong in (np.zeros(4), np.zeros((0, 3)), np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match="shape"):
            geometry.rankme(wrong)
