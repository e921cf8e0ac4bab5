"""Calibration and refusal: known answers by hand, and the properties that such curves have."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pathsynth.evaluation import calibration
from pathsynth.evaluation import statistics as scores


def test_reliability_by_hand():
    # 0.5 belongs to the bin (0, 0.5], whose upper edge it is
    rows = calibration.reliability(np.array([0.5, 0.3, 0.9, 1.0, 0.51]), np.array([True, False, True, True, False]), bins=2)
    assert rows == [
        {"low": 0.0, "high": 0.5, "n": 2, "confidence": 0.4, "accuracy": 0.5},
        {"low": 0.5, "high": 1.0, "n": 3, "confidence": 0.803333, "accuracy": 0.666667},
    ]


def test_bins_without_images_have_no_row():
    rows = calibration.reliability(np.array([0.05, 0.95, 0.0]), np.array([True, True, False]))
    assert [(row["low"], row["high"], row["n"]) for row in rows] == [(0.0, 0.1, 2), (0.9, 1.0, 1)]
    assert calibration.reliability(np.zeros(0), np.zeros(0, bool)) == []


@pytest.mark.parametrize("bins", [1, 5, 10, 15])
def test_rows_add_up_to_the_calibration_error(bins: int):
    rng = np.random.default_rng(bins)
    probabilities = rng.dirichlet(np.ones(4) * 0.4, 500)
    # numbers on the edges of the bins among them
    probabilities[:40] = np.array([0.6, 0.2, 0.1, 0.1])
    y_true = rng.integers(0, 4, 500)
    correct = probabilities.argmax(axis=1) == y_true
    rows = calibration.reliability(probabilities.max(axis=1), correct, bins)
    assert sum(row["n"] for row in rows) == 500
    error = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / 500
    assert error == pytest.approx(scores.expected_calibration_error(probabilities, y_true, bins), abs=3e-6)


def test_thresholds_by_hand():
    y_true = np.array([0, 0, 0, 1, 1, 1])
    gate = np.array([0, 0, 1, 1, 1, 1])
    confidence = np.array([0.9, 0.6, 0.99, 0.95, 0.7, 0.5])
    judge = np.array([0, 1, 0, 1, 1, 0])
    rows = calibration.threshold_curve(y_true, gate, confidence, judge, ("a", "b", "c"), (0.0, 0.7, 0.92, 1.0))
    names = ("threshold", "kept_share", "judge_accuracy", "expected_attempts", "n_kept", "tissues_lost")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (0.0, 0.833333, 0.6, 1.25, 5, 0),
        (0.7, 0.5, 1.0, 2.25, 3, 0),
        (0.92, 0.166667, 1.0, None, 1, 1),
        (1.0, 0.0, None, None, 0, 2),
    ]
    assert all(tuple(row) == names for row in rows)


def random_images(seed: int, count: int = 400) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    y_true = np.arange(count) % 5
    confidence = rng.random(count)
    gate = np.where(rng.random(count) < 0.3 + 0.7 * confidence, y_true, rng.integers(0, 5, count))
    judge = np.where(rng.random(count) < 0.9, gate, rng.integers(0, 5, count))
    return y_true, gate, confidence, judge


@pytest.mark.parametrize("seed", range(3))
def test_a_stricter_threshold_keeps_no_more(seed: int):
    images = random_images(seed)
    order = np.random.default_rng(seed).permutation(len(images[0]))
    thresholds = np.linspace(0.0, 1.0, 21)
    rows = calibration.threshold_curve(*images, "abcde", thresholds)
    assert (np.diff([row["n_kept"] for row in rows]) <= 0).all()
    assert rows[0]["n_kept"] == (images[0] == images[1]).sum()
    costs = [row["expected_attempts"] for row in rows if row["expected_attempts"] is not None]
    assert (np.diff(costs) >= -1e-6).all()
    assert min(costs) >= 1.0
    assert rows == calibration.threshold_curve(*(values[order] for values in images), "abcde", thresholds)


def attempts(*rows: tuple[str, int, int, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["tissue", "slot", "attempt", "accepted"])


def test_filled_by_hand():
    table = attempts(
        ("mucus", 0, 0, 1),
        ("mucus", 1, 0, 0),
        ("mucus", 1, 1, 1),
        ("debris", 0, 0, 0),
        ("debris", 0, 1, 0),
        ("debris", 0, 2, 1),
        ("debris", 1, 0, 0),
        ("debris", 1, 1, 0),
        ("debris", 1, 2, 0),
    )
    rows = calibration.filled_curve(table, images_per_tissue=2, max_attempts=3)
    assert [(row["tissue"], row["attempt"], row["filled"]) for row in rows] == [
        ("mucus", 1, 0.5),
        ("mucus", 2, 1.0),
        ("mucus", 3, 1.0),
        ("debris", 1, 0.0),
        ("debris", 2, 0.0),
        ("debris", 3, 0.5),
        ("all", 1, 0.25),
        ("all", 2, 0.5),
        ("all", 3, 0.75),
    ]
    shuffled = table.sample(frac=1.0, random_state=0)
    assert sorted(map(str, calibration.filled_curve(shuffled, 2, 3))) == sorted(map(str, rows))


def test_filled_with_nothing_accepted():
    rows = calibration.filled_curve(attempts(("mucus", 0, 0, 0)), images_per_tissue=1, max_attempts=2)
    assert [row["filled"] for row in rows] == [0.0] * 4


Y = np.array([0, 1])
HALF = np.full(2, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration.reliability(HALF, Y == 0, bins=0), "bins"),
        (lambda: calibration.reliability(HALF, np.ones(3, bool)), r"shapes \(2,\) and \(3,\)"),
        (lambda: calibration.reliability(HALF + 1.0, Y == 0), r"\[0, 1\]"),
        (lambda: calibration.reliability(HALF * np.nan, Y == 0), r"\[0, 1\]"),
        (lambda: calibration.threshold_curve(Y, Y, HALF, Y[:1], "ab", [0.5]), "unequal lengths"),
        (lambda: calibration.threshold_curve(Y, Y, HALF, Y + 1, "ab", [0.5]), "judge_pred"),
        (lambda: calibration.threshold_curve(Y[:0], Y[:0], HALF[:0], Y[:0], "ab", [0.5]), "no images"),
        (lambda: calibration.filled_curve(attempts(), 1, 1), "no rows"),
        (lambda: calibration.filled_curve(attempts(("mucus", 0, 0, 1)), 0, 1), "at least 1"),
    ],
)
def test_impossible_input_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
