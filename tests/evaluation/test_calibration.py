"""Calibration and rejection: known answers by hand, and properties of such curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pathsynth.classifiers.metrics import expected_calibration_error
from pathsynth.evaluation import calibration


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


@pytest.mark.parametrize("bins", [1, 10])
def test_rows_add_up_to_the_calibration_error(bins: int):
    rng = np.random.default_rng(bins)
    probabilities = rng.dirichlet(np.ones(4) * 0.4, 500)
    # some at the edges of the bins
    probabilities[:40] = np.array([0.6, 0.2, 0.1, 0.1])
    y_true = rng.integers(0, 4, 500)
    rows = calibration.reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == y_true, bins)
    assert sum(row["n"] for row in rows) == 500
    error = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / 500
    assert error == pytest.approx(expected_calibration_error(probabilities, y_true, bins), abs=3e-6)


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


def test_stricter_threshold_keeps_no_more():
    rng = np.random.default_rng(0)
    y_true, confidence = np.arange(400) % 5, rng.random(400)
    gate = np.where(rng.random(400) < 0.3 + 0.7 * confidence, y_true, rng.integers(0, 5, 400))
    judge = np.where(rng.random(400) < 0.9, gate, rng.integers(0, 5, 400))
    rows = calibration.threshold_curve(y_true, gate, confidence, judge, "abcde", np.linspace(0.0, 1.0, 21))
    assert (np.diff([row["n_kept"] for row in rows]) <= 0).all()
    assert rows[0]["n_kept"] == (y_true == gate).sum()
    costs = [row["expected_attempts"] for row in rows if row["expected_attempts"] is not None]
    assert (np.diff(costs) >= -1e-6).all() and min(costs) >= 1.0


def attempts(*rows: tuple[str, int, int, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["tissue", "slot", "attempt", "accepted"])


def test_filled_by_hand():
    mucus = [("mucus", 0, 0, 1), ("mucus", 1, 0, 0), ("mucus", 1, 1, 1)]
    debris = [("debris", 0, 0, 0), ("debris", 0, 1, 0), ("debris", 0, 2, 1)]
    never = [("debris", 1, 0, 0), ("debris", 1, 1, 0), ("debris", 1, 2, 0)]
    rows = calibration.filled_curve(attempts(*mucus, *debris, *never), images_per_tissue=2, max_attempts=3)
    assert [(row["tissue"], row["attempt"], row["filled"]) for row in rows] == [
        ("mucus", 1, 0.5), ("mucus", 2, 1.0), ("mucus", 3, 1.0),
        ("debris", 1, 0.0), ("debris", 2, 0.0), ("debris", 3, 0.5),
        ("all", 1, 0.25), ("all", 2, 0.5), ("all", 3, 0.75),
    ]  # fmt: skip
    rows = calibration.filled_curve(attempts(("mucus", 0, 0, 0)), images_per_tissue=1, max_attempts=2)
    assert [row["filled"] for row in rows] == [0.0] * 4
