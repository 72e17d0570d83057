"""Few-shot episodes: which images meet, and what is refused."""

import numpy as np
import pytest

from tests.protocols.stubs import SIZE, make_backbone, make_dataset
from transferbench.data.dataset import Card
from transferbench.errors import UserError
from transferbench.measures.episodes import interval, nearest_mean
from transferbench.progress import SILENT
from transferbench.protocols.features import gather
from transferbench.protocols.fewshot import FewShot, FewShotParameters, episode_accuracies
from transferbench.storage import canonical_json

FEW = FewShotParameters(ways=3, shots=4, also=(2, 500), queries=6, episodes=40)

pytestmark = pytest.mark.usefixtures("fresh_cache")


def run(parameters=FEW, seed=0, **options):
    dataset = make_dataset(noise=60.0, **options)
    return FewShot().run(make_backbone(), dataset, parameters, seed=seed, device="cpu")


def test_the_number_is_the_mean_over_episodes_with_its_interval():
    outcome = run()
    mean, half = interval(outcome.predictions)
    assert outcome.predictions.shape == (40,)
    assert (outcome.metric, outcome.value, outcome.n) == ("top1", mean, 300)
    assert outcome.standard_error == pytest.approx(half / 1.96)
    by_shots = outcome.details["by_shots"]
    assert by_shots["4"] == {"value": mean, "interval_95": half}
    assert 0.3 < by_shots["2"]["value"] < mean
    assert by_shots["500"] is None
    assert outcome.details["images"] == 300
    canonical_json(outcome.details)


def test_episodes_are_the_seeds_and_no_other_shots_change_them():
    whole, same, other = run(), run(), run(seed=1)
    assert (whole.predictions == same.predictions).all()
    assert (whole.predictions != other.predictions).any()
    alone = run(FEW.model_copy(update={"also": ()}))
    assert (alone.predictions == whole.predictions).all()


def test_an_episode_has_its_own_images_in_both_parts(monkeypatch):
    from transferbench.measures import episodes

    seen = []
    real = nearest_mean

    def watched(support, support_labels, queries, query_labels):
        seen.append((support[:, 0], support_labels, queries[:, 0], query_labels))
        return real(support, support_labels, queries, query_labels)

    monkeypatch.setattr(episodes, "nearest_mean", watched)
    labels = np.repeat(np.arange(6), 30)
    features = np.stack([np.arange(180.0), labels], axis=1)
    parameters = FewShotParameters(ways=5, shots=4, queries=15, episodes=30)
    episode_accuracies(features, labels, parameters, shots=4, seed=0)
    classes = set()
    for support, support_labels, queries, query_labels in seen:
        assert (len(support), len(queries)) == (20, 75)
        assert len({*support, *queries}) == 95
        own = labels[support.astype(int)]
        assert len(set(own)) == 5
        assert (own.reshape(5, 4) == own[::4, None]).all()
        assert (labels[queries.astype(int)] == own[::4][query_labels]).all()
        assert (support_labels == np.repeat(np.arange(5), 4)).all()
        classes |= set(own)
    assert classes == set(range(6))


def test_mode_paper_squashes_and_cuts_as_the_code():
    from PIL import Image
    from torchvision.transforms import functional

    from transferbench.data.dataset import Split
    from transferbench.data.images import ArrayImage
    from transferbench.protocols.fewshot import squashed_view

    draw = np.random.RandomState(0)
    given = [draw.randint(0, 256, (h, w, 3)).astype(np.uint8) for h, w in [(30, 20), (12, 40)]]
    split = Split("train", np.zeros(2, np.int64), [ArrayImage("", i) for i in given], "two")
    found = squashed_view().pixels(split, make_backbone(), SILENT)
    side = int(SIZE * 1.15)
    assert side == 9
    for pixels, image in zip(found, given, strict=True):
        resized = functional.resize(Image.fromarray(image), [side, side])
        expected = np.asarray(functional.center_crop(resized, [SIZE, SIZE]))
        assert (pixels == expected).all()


def test_the_two_modes_have_features_of_their_own():
    from dataclasses import replace

    from transferbench.data.digits import DIGITS

    dataset = DIGITS.load()
    backbone = replace(make_backbone(), input_size=20)
    few = {"shots": 5, "episodes": 20}
    text, paper = (
        FewShot().run(backbone, dataset, FewShotParameters(mode=mode, **few), seed=0, device="cpu")
        for mode in ("text", "paper")
    )
    assert (text.predictions != paper.predictions).any()
    plain, _ = gather(backbone, dataset, ("test",))
    assert np.isfinite(plain).all()


def test_too_few_images_or_classes_are_named():
    with pytest.raises(UserError, match=r"90 shots and 6 queries need 96 images a class, but"):
        run(FEW.model_copy(update={"shots": 90}))
    dataset = make_dataset(classes=6)
    for name in ("train", "val", "test"):
        dataset.splits[name].labels[:] %= 2
    with pytest.raises(UserError, match="'colors' has images of 2 classes, but an episode needs 3"):
        FewShot().run(make_backbone(), dataset, FEW, seed=0, device="cpu")


def test_where_it_applies():
    def card(**values):
        base = {"name": "x", "metric": "top1", "classes": 5, "counts": {"train": 50, "test": 50}}
        return Card.model_validate(base | values)

    five, fifty = FewShotParameters(), FewShotParameters(shots=50)
    assert FewShot().applies_to(card())
    assert not FewShot().applies_to(card(task="multilabel", metric="map11"))
    assert not five.suit(card(classes=4))
    assert FewShotParameters(ways=4).suit(card(classes=4))
    known = card(label_histogram={"train": [60, 45, 60, 60, 60], "test": [20] * 5})
    assert fifty.suit(known)
    assert not FewShotParameters(shots=51).suit(known)
    limits = card(images_per_class={"train": {"min": 30, "max": 60}, "test": {"min": 5, "max": 6}})
    assert not FewShotParameters(shots=22).suit(limits)
    assert FewShotParameters(shots=21).suit(limits)


def test_other_shots_are_told_unless_one_kind_was_asked_for():
    assert FewShotParameters().also == (20, 50)
    assert FewShotParameters(shots=20).also == ()
    assert FewShotParameters(shots=20, also=(5,)).also == (5,)
