"""Distances of single features, colour spread, and the classifier two-sample test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from pathsynth.evaluation.structure import colour_spread, distribution_distances, two_sample_auc

SLUGS = ("mucus", "debris", "stroma")


def test_shift_is_measured_in_standard_deviations():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 500)
    real = rng.normal(5.0, np.where(labels == 0, 1.0, 3.0))
    moved = real + np.where(labels == 0, 2.0, -3.0)
    scores = distribution_distances(moved, labels, real, labels, SLUGS)
    deviations = [real[labels == i].std() for i in (0, 1)]
    expected = [2.0 / deviations[0], 3.0 / deviations[1]]
    assert [scores["per_tissue"][slug]["distance"] for slug in SLUGS[:2]] == pytest.approx(expected, abs=1e-5)
    assert scores["distance"] == pytest.approx(np.mean(expected), abs=1e-5) and "stroma" not in scores["per_tissue"]
    debris = scores["per_tissue"]["debris"]
    assert debris["real"] - debris["generated"] == pytest.approx(3.0, abs=1e-5)
    assert distribution_distances(real, labels, real, labels, SLUGS)["distance"] == 0.0


def test_equal_real_values_have_the_unit_of_all_tissues():
    labels = np.repeat([0, 1], 2)
    scores = distribution_distances(np.ones(4), labels, np.array([0.0, 0.0, 3.0, 5.0]), labels, SLUGS)
    assert scores["per_tissue"]["mucus"]["distance"] == pytest.approx(1.0 / np.std([0.0, 0.0, 3.0, 5.0]), abs=1e-5)
    assert distribution_distances(np.zeros(2), labels[:2], np.zeros(4), labels, SLUGS)["distance"] == 0.0


def test_expected_distance_is_that_of_new_real_images():
    rng, labels = np.random.default_rng(7), np.zeros(30, int)
    found = []
    for _ in range(100):
        real = rng.gamma(2.0, size=120)
        found.append(distribution_distances(rng.gamma(2.0, size=30), labels, real, np.zeros(120, int), SLUGS))
    distances, expected = (np.mean([scores[name] for scores in found]) for name in ("distance", "expected"))
    assert expected == pytest.approx(distances, rel=0.1)
    assert found[0]["per_tissue"]["mucus"]["expected"] == found[0]["expected"]


def test_set_without_common_tissues_has_no_distance():
    assert distribution_distances(np.ones(2), np.array([0, 0]), np.ones(2), np.array([1, 1]), SLUGS) == {"per_tissue": {}}


def test_colour_spread_is_the_deviation_of_mean_colours():
    rng, labels = np.random.default_rng(1), np.zeros(400, int)

    def images(deviation: float) -> np.ndarray:
        means = rng.normal(128, deviation, (400, 1, 1, 3))
        return np.clip(means + rng.normal(0, 20, (400, 8, 8, 3)), 0, 255).astype(np.uint8)

    scores = colour_spread(images(5.0), labels, images(15.0), labels, SLUGS)["per_tissue"]["mucus"]
    assert scores["real"] == pytest.approx(15.0, rel=0.1) and scores["generated"] == pytest.approx(5.5, rel=0.15)
    assert scores["distance"] == pytest.approx(scores["generated"] - scores["real"], abs=1e-5)


def test_colour_spread_by_hand_and_of_few_images():
    grey = np.array([100, 110, 130, 200], np.uint8)[:, None, None, None] * np.ones((4, 2, 2, 3), np.uint8)
    labels = np.array([0, 0, 1, 1])
    scores = colour_spread(grey, labels, grey[[0, 1, 2]], labels[[0, 1, 2]], SLUGS)
    # of debris there is only one real image
    spread = round(10 / np.sqrt(2), 6)
    assert scores == {"distance": 0.0, "per_tissue": {"mucus": {"generated": spread, "real": spread, "distance": 0.0}}}
    assert colour_spread(grey[:1], labels[:1], grey, labels, SLUGS) == {"per_tissue": {}}


def test_auc_of_known_distributions():
    rng, labels = np.random.default_rng(2), np.repeat([0, 1], 400)
    real = rng.normal(size=(800, 4))
    same = two_sample_auc(rng.normal(size=(800, 4)), labels, real, labels, 1)
    assert same["auc"] == pytest.approx(0.5, abs=0.05) and same["low"] < 0.5 < same["high"]
    shifted = two_sample_auc(rng.normal(size=(800, 4)) + np.eye(4)[0], labels, real, labels, 1)
    # of two normal distributions that are one standard deviation apart
    assert shifted["low"] < norm.cdf(1 / np.sqrt(2)) < shifted["high"]
    assert two_sample_auc(real + 100, labels, real, labels, 1)["auc"] == 1.0


def test_tissues_are_matched():
    """Sets of other tissue proportions cannot be told apart by their proportions."""
    rng = np.random.default_rng(3)
    labels, real_labels = np.repeat([0, 1], [300, 100]), np.repeat([0, 1], [100, 300])
    rows = [10.0 * each[:, None] + rng.normal(size=(400, 2)) for each in (labels, real_labels)]
    scores = two_sample_auc(rows[0], labels, rows[1], real_labels, 1)
    assert scores["low"] < 0.5 < scores["high"]


def test_tissues_that_differ_more_than_the_sets_give_no_bias():
    """Folds with other tissue proportions on either side would push the area below 0.5."""
    rng, labels = np.random.default_rng(4), np.repeat(np.arange(9), 10)
    centres = 5.0 * rng.normal(size=(9, 12))
    found = [
        two_sample_auc(
            centres[labels] + rng.normal(size=(90, 12)), labels, centres[labels] + rng.normal(size=(90, 12)), labels, 1
        )
        for _ in range(10)
    ]
    aucs = np.array([scores["auc"] for scores in found])
    assert aucs.mean() == pytest.approx(0.5, abs=0.04)
    assert np.mean([scores["low"] < 0.5 < scores["high"] for scores in found]) >= 0.9


def test_difference_within_tissues_is_seen_beside_larger_ones_between_them():
    rng, labels = np.random.default_rng(5), np.repeat(np.arange(3), 100)
    real, own = (20.0 * labels[:, None] + rng.normal(size=(300, 1)) + shift for shift in (0.0, 2.0))
    assert two_sample_auc(own, labels, real, labels, 1)["auc"] == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.03)


def test_auc_is_reproducible_and_symmetric():
    rng, labels = np.random.default_rng(6), np.repeat([0, 1], 60)
    own, real = rng.normal(size=(120, 3)), rng.normal(size=(120, 3)) + 0.5
    scores = two_sample_auc(own, labels, real, labels, 7)
    assert scores == two_sample_auc(own, labels, real, labels, 7)
    assert scores["auc"] == pytest.approx(two_sample_auc(real, labels, own, labels, 7)["auc"], abs=0.03)
    assert 0.0 <= scores["low"] < scores["auc"] < scores["high"] <= 1.0


@pytest.mark.parametrize("count", [0, 4, 19])
def test_few_images_have_no_auc(count: int):
    labels, real_labels = np.zeros(count, int), np.zeros(50, int)
    scores = two_sample_auc(np.ones((count, 2)), labels, np.ones((50, 2)), real_labels, 1)
    assert scores == {"undefined": f"images with a real image of the same tissue: {count}, at least 20 are needed"}
