"""Tests between configurations: their error rate in simulated tables, their power, and pairs that cannot be tested."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pathsynth.compare.differences import compare_configurations, compare_pairs
from pathsynth.compare.table import Configuration

IMAGE_NOISE = 0.01


def simulate(rng: np.random.Generator, configurations: int, trainings: int, noise: float, better: float = 0.0) -> dict:
    """Scores of equal configurations, of which the first is `better`; each training and each set of images has its noise."""
    scores = 0.75 + rng.normal(0, noise, (configurations, trainings)) + rng.normal(0, IMAGE_NOISE, (configurations, trainings))
    scores[0] += better
    return {f"r{number}": dict(enumerate(row)) for number, row in enumerate(scores)}


@pytest.mark.parametrize("noise", [0.05, 0.0])
def test_at_most_5_percent_of_tables_of_equal_configurations_show_a_difference(noise: float):
    rng = np.random.default_rng(0)
    tables = [compare_pairs(simulate(rng, 8, 5, noise)) for _ in range(1000)]
    wrong = np.mean([any(pair.significant for pair in pairs) for pairs in tables])
    # the standard error of 0.05 in 1000 tables is 0.007; three of them are allowed
    assert wrong <= 0.05 + 3 * 0.007


@pytest.mark.parametrize(("configurations", "trainings", "noise"), [(2, 5, 0.05), (8, 10, 0.05), (8, 5, 0.0)])
def test_true_difference_of_0_15_is_found(configurations: int, trainings: int, noise: float):
    rng = np.random.default_rng(0)
    tables = [compare_pairs(simulate(rng, configurations, trainings, noise, better=0.15)) for _ in range(200)]
    pairs = [pair for table in tables for pair in table if pair.first == "r0"]
    assert np.mean([str(pair) == f"r0 is better than {pair.second}" for pair in pairs]) > 0.9


def test_difference_by_hand():
    # differences of 0.1, 0.2 and 0.3: t = 0.2 / (0.1 / sqrt 3) = 3.464 with 2 degrees of freedom
    (pair,) = compare_pairs({"a": {1: 0.6, 2: 0.8, 3: 1.0, 9: 0.1}, "b": {3: 0.7, 2: 0.6, 1: 0.5, 4: 0.9}})
    assert pair.trainings == 3 and pair.p == pytest.approx(0.074180, abs=1e-6) and str(pair) == "no difference shown"
    assert pair.mean == pytest.approx((0.2, 0.1, 0.2 - 0.248414, 0.2 + 0.248414), abs=1e-6)


def test_p_values_are_corrected_for_tested_pairs_only():
    scores = {"a": {1: 0.9, 2: 0.8, 3: 0.9}, "b": {1: 0.6, 2: 0.6, 3: 0.5}, "c": {1: 0.7, 2: 0.4, 3: 0.7}}
    (alone,) = compare_pairs({name: scores[name] for name in "ab"})
    assert compare_pairs(scores | {"d": {1: 0.2}})[0].p == pytest.approx(3 * alone.p, abs=2e-6)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ({1: 0.9}, {1: 0.1}, "one training each"),
        ({1: 0.9}, {2: 0.1}, "one training each"),
        ({1: 0.9, 2: 0.9}, {3: 0.1}, "no trainings in common"),
        ({1: 0.9, 2: 0.9, 3: 0.9}, {1: 0.1, 4: 0.1, 5: 0.1}, "one training in common"),
        ({1: 0.9, 2: 0.9}, {1: 0.1, 2: 0.2}, "two trainings in common"),
        ({1: 0.9, 2: 0.8, 3: 0.7}, {1: 0.8, 2: 0.7, 3: 0.6}, "the same difference with every training"),
        ({1: 0.9, 2: 0.8, 3: 0.7}, {1: 0.9, 2: 0.8, 3: 0.7}, "the same difference with every training"),
    ],
)
def test_pair_that_cannot_be_tested_has_a_reason(first: dict, second: dict, sentence: str):
    (pair,) = compare_pairs({"a": first, "b": second})
    assert str(pair) == f"not testable: {sentence}" and pair.p is None and not pair.significant


def test_table_has_tested_pairs_and_counts_the_others():
    def configuration(name: str, scores: list[float], images: int) -> Configuration:
        runs = {"training": range(len(scores)), "judge_f1": scores, "images_seen": images}
        return Configuration(name, pd.DataFrame(runs).convert_dtypes())

    long = configuration("long", [0.95, 0.96, 0.94, 0.95], 32000)
    short, other = (configuration(name, [0.81, 0.80, 0.83, level], 11200) for name, level in (("short", 0.8), ("other", 0.7)))
    table, untested = compare_configurations([long, short, other, configuration("once", [0.99], 11200)])
    assert table is not None and untested == "Not testable: 3 pairs (one training in common)."
    assert [row[0] for row in table.rows] == ["long, short", "long, other", "short, other"]
    assert str(table.rows[0][-1]) == "long is better than short (trained on 32,000 and 11,200 images)"
    assert str(table.rows[2][-1]) == "no difference shown"
    assert compare_configurations([long]) == (None, "")
