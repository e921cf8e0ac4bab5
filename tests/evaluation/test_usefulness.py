"""Usefulness: training sets, scores, and sets that are too small."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tiny_tree

from pathsynth.core.errors import ParamsError
from pathsynth.core.params import validate
from pathsynth.data import labels
from pathsynth.data.generated import LabelledImages
from pathsynth.evaluation import usefulness
from pathsynth.evaluation.usefulness import UsefulnessSettings


def settings(**classifier) -> UsefulnessSettings:
    tree = tiny_tree()["benchmarks"]["tiny"]["evaluation"]["usefulness"]
    return UsefulnessSettings.model_validate(tree | {"classifier": tree["classifier"] | classifier})


def test_training_sets_match_the_synthetic_set_and_differ_between_repeats(tiny_prepared):
    made = LabelledImages(tiny_prepared.images("val"), np.repeat([0, 3], 9).astype(np.uint8))
    sources = [usefulness._training_sets(tiny_prepared, made, seed=1, repeat=repeat) for repeat in (0, 0, 1)]
    images, chosen = sources[0]["real"]
    # there are four real ones of each tissue
    assert np.bincount(chosen, minlength=9).tolist() == [4, 0, 0, 4, 0, 0, 0, 0, 0]
    assert len(images) == 8 and images[np.arange(8)].shape == (8, 32, 32, 3)
    few = LabelledImages(made.images[:4], np.array([0, 0, 3, 3], np.uint8))
    draws = [
        usefulness._training_sets(tiny_prepared, few, 1, repeat)["real"][0].indices.tolist() for repeat in (0, 0, 1, 2, 3, 4)
    ]
    assert draws[0] == draws[1] and len({tuple(draw) for draw in draws}) > 1
    assert "twice_real" not in sources[0]
    twice, twice_labels = usefulness._training_sets(tiny_prepared, few, 1, 0)["twice_real"]
    assert len(twice) == 8 and np.bincount(twice_labels).tolist() == [4, 0, 0, 4]
    both, both_labels = sources[0]["real_and_synthetic"]
    order = np.array([9, 0, 25, 3])
    got = both[order]
    np.testing.assert_array_equal(got[[1, 3]], images[np.array([0, 3])])
    np.testing.assert_array_equal(got[[0, 2]], made.images[np.array([1, 17])])
    assert both_labels[order].tolist() == [0, 0, 3, 3]


@pytest.mark.slow
def test_correct_labels_are_more_useful_than_wrong_ones(tiny_prepared):
    """Tissues are flat colours."""

    class Coloured:
        slugs = labels.SLUGS[:2]

        def images(self, split):
            return coloured(self.labels_of(split))

        def labels_of(self, split):
            return np.tile([0, 1], 16 if split == "train" else 8)

    def coloured(y_true):
        noise = np.random.default_rng(0).integers(0, 30, (len(y_true), 16, 16, 3))
        return (noise + 150 * np.asarray(y_true)[:, None, None, None]).astype(np.uint8)

    y_true = np.tile([0, 1], 16)
    wanted = settings(epochs=2, batch_size=8, learning_rate=3e-3, augmentation={
        "flips": True, "rotate90": True, "stain": 0.0, "brightness": 0.0, "blur": 0.0
    })  # fmt: skip
    right, wrong = (
        usefulness.measure_usefulness(Coloured(), LabelledImages(coloured(shown), y_true), wanted, 1, "cpu", trained_on="raw")
        for shown in (y_true, 1 - y_true)
    )
    assert right["synthetic"]["accuracy_mean"] > 0.9 > 0.1 > wrong["synthetic"]["accuracy_mean"]
    assert right["real"] == wrong["real"], "the real images are the same"
    assert right["real_and_synthetic"]["n_images"] == 64
    assert right["steps"] == 8 and right["trained_on"] == "raw"
    assert right["twice_real"] == {"n_images": 0, "undefined": "not twice as many real images of every tissue"}
    assert set(right["synthetic"]["per_tissue"]) == set(labels.SLUGS[:2])


def test_too_few_images_have_a_reason(tiny_prepared):
    for count in (0, 1):
        few = LabelledImages(tiny_prepared.images("val")[:count], np.zeros(count, np.uint8))
        result = usefulness.measure_usefulness(tiny_prepared, few, settings(), 1, "cpu", trained_on="raw")
        assert result["synthetic"] == {"n_images": count, "undefined": "fewer than 2 synthetic images to train on"}


def test_selection_by_real_images_is_refused():
    tree = tiny_tree()["benchmarks"]["tiny"]["evaluation"]["usefulness"]
    tree["classifier"]["checkpoint"] = "best"
    with pytest.raises(ParamsError, match="'best' would select by real images; allowed: 'last'"):
        validate("params.yaml", "x", UsefulnessSettings, tree)


@pytest.mark.parametrize("count", [5, 16, 33])
def test_a_pass_uses_each_image_at_most_once(count, monkeypatch):
    from itertools import islice

    import torch

    from pathsynth.classifiers.training import _shuffled_batches, steps_per_epoch

    batches = list(islice(_shuffled_batches(count, 4, torch.Generator().manual_seed(1)), 12))
    per_pass = steps_per_epoch(count, 4)
    assert per_pass == count // 4 and len(batches) == 12
    for start in range(0, 12 - per_pass + 1, per_pass):
        one_pass = torch.cat(batches[start : start + per_pass]).tolist()
        assert len(set(one_pass)) == len(one_pass)
    assert {len(batch) for batch in batches} == {4}
