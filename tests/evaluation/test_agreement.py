"""Agreement of gate and judge, and the gain of filtering."""

from __future__ import annotations

import numpy as np
import pytest

from pathsynth.evaluation.agreement import disputed_share, error_agreement, filter_gain


def test_equal_classifiers_have_kappa_one_and_more_errors_in_common_than_independent_ones():
    y_true = np.zeros(100, int)
    wrong = np.where(np.arange(100) < 10, 1, 0)
    scores = error_agreement(y_true, wrong, wrong)
    assert scores == {"n_images": 100, "both_wrong": 10, "expected_both_wrong": 1.0, "same_wrong_class": 10, "kappa": 1.0}


def test_independent_errors_have_kappa_near_zero():
    rng = np.random.default_rng(0)
    y_true = np.zeros(20_000, int)
    first, second = (np.where(rng.random(20_000) < share, rng.integers(1, 9, 20_000), 0) for share in (0.1, 0.2))
    scores = error_agreement(y_true, first, second)
    assert abs(scores["kappa"]) < 0.03
    assert scores["both_wrong"] == pytest.approx(scores["expected_both_wrong"], rel=0.15)
    # of eight wrong classes, both choose the same one in an eighth of the cases
    assert scores["same_wrong_class"] / scores["both_wrong"] == pytest.approx(1 / 8, abs=0.05)


@pytest.mark.parametrize(("second", "reason"), [(0, "makes no error"), (1, "is never right")])
def test_kappa_is_undefined_for_a_classifier_that_is_always_or_never_right(second, reason):
    scores = error_agreement(np.zeros(4, int), np.array([0, 0, 0, 1]), np.full(4, second))
    assert "kappa" not in scores and reason in scores["undefined"]["kappa"]


def test_filter_gain_is_paired_by_slot():
    labels = np.repeat([0, 1], 50)
    before, after = np.arange(100) % 2 == 0, np.arange(100) % 10 > 0
    gain = filter_gain(before, after, labels, seed=1)
    assert gain["difference"] == pytest.approx(0.4) and gain["n_images"] == 100
    assert gain["low"] < 0.4 < gain["high"] and gain["high"] - gain["low"] < 0.4
    # the same images gain nothing, without doubt
    assert filter_gain(before, before, labels, 1) == {"difference": 0.0, "low": 0.0, "high": 0.0, "n_images": 100}
    assert "no image" in filter_gain(before[:0], after[:0], labels[:0], 1)["undefined"]


def test_disputed_share_has_an_exact_interval():
    labels = np.zeros(40, int)
    scores = disputed_share(labels, np.where(np.arange(40) < 4, 3, 0))
    # Clopper and Pearson for 4 of 40
    assert scores == {"n_images": 40, "n_disputed": 4, "share": 0.1, "low": 0.027925, "high": 0.236637}
    assert disputed_share(labels[:0], labels[:0]) == {"n_images": 0, "n_disputed": 0}
