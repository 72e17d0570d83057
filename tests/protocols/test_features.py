"""Extraction: evaluation mode, the cache, and what a module may give."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.protocols.stubs import Pool, make_backbone, make_dataset
from transferbench.backbones.reference import wrap_module
from transferbench.errors import UserError
from transferbench.protocols.features import batch_size, extract, features_path, gather

pytestmark = pytest.mark.usefixtures("fresh_cache")


def test_features_are_those_of_the_bare_network_and_are_computed_once():
    split = make_dataset(sizes={"train": 600, "test": 5}).splits["train"]
    backbone = make_backbone()
    found = extract(backbone, split)
    assert isinstance(found, np.memmap)
    assert (found.shape, found.dtype) == ((600, 6), np.float32)
    with torch.inference_mode():
        expected = backbone.module.eval()(backbone.normalize(torch.from_numpy(split.pixels(8))))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
    seen = backbone.module.seen.copy()
    np.testing.assert_array_equal(extract(backbone, split), found)
    assert backbone.module.seen == seen


def test_the_network_is_evaluated_and_its_flags_come_back():
    module = Pool()
    module.train()
    module.drop.eval()
    extract(make_backbone(module), make_dataset().splits["train"])
    assert dict(module.seen) == {False: 160}
    assert module.training
    assert not module.drop.training


def test_the_cache_tells_backbones_and_splits_apart():
    one, two = (make_dataset(seed=seed).splits["train"] for seed in (0, 1))
    other = make_backbone(Pool())
    with torch.no_grad():
        other.module.scale.mul_(2)
    other = make_backbone(other.module)
    paths = {features_path(b, s) for b in (make_backbone(), other) for s in (one, two)}
    assert len(paths) == 4


def test_features_of_a_module_that_no_digest_tells_apart_are_not_kept():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, images):
            return self.factor * images.mean((2, 3))

    split = make_dataset().splits["train"]
    one, two = (wrap_module(Scaled(factor), input_size=8) for factor in (1.0, 2.0))
    assert one.digest == two.digest
    np.testing.assert_array_equal(2 * extract(one, split), extract(two, split))
    assert not features_path(one, split).exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',"),
        lambda path: np.save(path, np.zeros((159, 6), np.float32)),
        lambda path: np.save(path, np.zeros((160, 6), np.float64)),
        lambda path: np.save(path, np.zeros(160, np.float32)),
    ],
)
def test_a_damaged_cache_file_is_made_anew(damage):
    backbone, split = make_backbone(), make_dataset().splits["train"]
    expected = np.array(extract(backbone, split))
    damage(features_path(backbone, split))
    np.testing.assert_array_equal(extract(backbone, split), expected)


def test_other_pixels_are_other_features(monkeypatch):
    backbone, split = make_backbone(), make_dataset().splits["train"]
    before = features_path(backbone, split)
    monkeypatch.setattr("transferbench.protocols.features.PIXELS_VERSION", 99)
    assert features_path(backbone, split) != before


def test_a_failed_extraction_leaves_nothing_in_the_cache():
    class Breaks(Pool):
        def forward(self, images):
            if sum(self.seen.values()) >= 256:
                raise RuntimeError("power cut")
            return super().forward(images)

    backbone = make_backbone(Breaks())
    split = make_dataset(sizes={"train": 600, "test": 5}).splits["train"]
    with pytest.raises(RuntimeError, match="power cut"):
        extract(backbone, split)
    assert list(features_path(backbone, split).parent.iterdir()) == []


def test_gather_joins_the_splits_in_order():
    dataset = make_dataset()
    features, labels = gather(make_backbone(), dataset, ("train", "val"))
    assert len(features) == len(labels) == 220
    np.testing.assert_array_equal(labels[160:], dataset.splits["val"].labels)
    np.testing.assert_array_equal(features[160:], extract(make_backbone(), dataset.splits["val"]))


def test_features_that_are_no_numbers_are_refused():
    module = Pool()
    with torch.no_grad():
        module.scale[2] = float("nan")
    with pytest.raises(UserError, match=r"pool gives features that are not finite.*160 of 160"):
        gather(make_backbone(module), make_dataset(), ("train",))


def test_maps_are_no_features():
    with pytest.raises(UserError, match=r"gives \(160, 3, 8, 8\) for 160 images"):
        extract(make_backbone(nn.Identity()), make_dataset().splits["train"])


def test_batches_shrink_as_images_grow():
    assert [batch_size(s) for s in (32, 64, 96, 224)] == [256, 256, 128, 64]
