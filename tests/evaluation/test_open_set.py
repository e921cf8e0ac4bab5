"""Open-set F1: images that are unlike the real images of their tissue count as wrong."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from pathsynth.evaluation.open_set import fit_open_set, open_set_scores

SLUGS = ("mucus", "debris", "stroma")
N, D = len(SLUGS), 8


def draw(per_tissue: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of tissues that lie far from each other, and labels."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(N), per_tissue)
    mixing = np.eye(D) + 0.5 * np.eye(D, k=1)
    return 10.0 * np.eye(N, D)[labels] + spread * rng.normal(size=(len(labels), D)) @ mixing, labels


@pytest.fixture(scope="module")
def fitted():
    return fit_open_set(*draw(200, 0), *draw(200, 1), N)


def test_one_in_twenty_real_images_is_rejected(fitted):
    for seed in (1, 2):
        assert fitted.rejects(*draw(1000 if seed == 2 else 200, seed)).mean() == pytest.approx(0.05, abs=0.015)


def test_images_of_other_tissues_or_spread_are_rejected(fitted):
    features, labels = draw(100, 3)
    assert fitted.rejects(features, (labels + 1) % N).all()
    assert fitted.rejects(*draw(100, 4, spread=4.0)).mean() > 0.9
    assert not fitted.rejects(*draw(100, 5, spread=0.1)).any()


def test_distance_is_mahalanobis_with_many_images():
    features, labels = draw(20_000, 6)
    fitted = fit_open_set(features, labels, *draw(50, 7), N)
    # the squared distance of a normal distribution is chi-squared with mean D
    rows, labels = draw(2000, 8)
    assert np.square(fitted.distances(rows, labels) * fitted.units[labels]).mean() == pytest.approx(D, rel=0.03)


def test_tissue_without_validation_or_training_images_is_never_rejected():
    features, labels = draw(50, 9)
    far = np.full((1, D), 1e3)
    for train, val in ((labels > 0, labels >= 0), (labels >= 0, labels > 0)):
        fitted = fit_open_set(features[train], labels[train], features[val], labels[val], N)
        assert not fitted.rejects(far, np.array([0])).any() and fitted.rejects(far, np.array([1])).all()
    alone = fit_open_set(features, labels, features[:0], labels[:0], N)
    assert not alone.rejects(far, np.array([1])).any()


def test_distances_are_in_units_of_the_median_validation_image(fitted):
    rows, labels = draw(200, 1)
    distances = fitted.distances(rows, labels)
    assert [np.median(distances[labels == tissue]) for tissue in range(N)] == pytest.approx([1.0] * N)
    assert fitted.limit == pytest.approx(np.quantile(distances, 0.95))
    assert fitted.rejects(rows[:0], labels[:0]).shape == (0,)


def test_few_or_equal_training_images_share_the_covariance_of_all():
    features, labels = draw(100, 10)
    # of tissue 0 one image, of tissue 1 as many as features, and in tissue 2 a feature that never varies
    train = (labels == 2) | np.isin(np.arange(300), [0, *range(100, 100 + D)])
    features[labels == 2, 0] = 0.0
    fitted = fit_open_set(features[train], labels[train], *draw(100, 11), N)
    assert fitted.covariances[0] is fitted.covariances[1] is not fitted.covariances[2]
    rows, row_labels = draw(100, 12)
    assert np.isfinite(fitted.distances(rows, row_labels)).all()
    assert fitted.rejects(rows, (row_labels + 1) % N).all()
    constant = fit_open_set(np.ones((N, D)), np.arange(N), np.ones((N, D)), np.arange(N), N)
    assert not constant.rejects(rows, row_labels).any()


def test_wrong_lengths_and_no_images_are_errors():
    two, three = np.zeros(2, int), np.zeros(3, int)
    with pytest.raises(ValueError, match="2, 2 and 3"):
        open_set_scores(two, two, three.astype(bool), SLUGS, 1)
    with pytest.raises(ValueError, match="no images"):
        open_set_scores(two[:0], two[:0], np.zeros(0, bool), SLUGS, 1)


def test_rejected_images_are_missed_and_raise_no_false_alarm():
    y_true, y_pred = np.repeat([0, 1, 2], 40), np.repeat([0, 1, 1], 40)
    nothing = np.zeros(120, bool)
    scores = open_set_scores(y_true, y_pred, nothing, SLUGS, 1)
    assert scores["macro_f1"] == pytest.approx(f1_score(y_true, y_pred, average="macro"), abs=1e-6) and scores["rejected"] == 0
    # rejecting the wrong images of class 2 frees class 1 of its false alarms
    scores = open_set_scores(y_true, y_pred, y_true == 2, SLUGS, 1)
    assert [scores["per_tissue"][slug]["f1"] for slug in SLUGS] == [1.0, 1.0, 0.0]
    assert scores["per_tissue"]["stroma"]["rejected"] == 1.0 and scores["rejected"] == pytest.approx(1 / 3, abs=1e-6)
    half = open_set_scores(y_true, y_true, np.arange(120) % 2 == 0, SLUGS, 1)
    assert half["macro_f1"] == pytest.approx(2 / 3, abs=1e-6)
    assert half["macro_f1_low"] < half["macro_f1"] < half["macro_f1_high"]
    assert open_set_scores(y_true, y_true, ~nothing, SLUGS, 1)["macro_f1"] == 0.0


def test_tissue_without_images_counts_as_zero():
    scores = open_set_scores(np.zeros(4, int), np.zeros(4, int), np.zeros(4, bool), SLUGS, 1)
    assert scores["macro_f1"] == pytest.approx(1 / 3, abs=1e-6) and scores["per_tissue"]["stroma"] == {"f1": 0.0}
