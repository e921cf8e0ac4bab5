"""Accuracy of readers: known answers, agreement with scikit-learn, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers.fake_answers import answer_truly, make_answers, make_key, simulate_reader
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from pathsynth.readers.accuracy import (
    areas,
    d_primes,
    score_origin,
    score_readers,
    score_times,
    score_tissue_naming,
    wilson_share,
)
from pathsynth.readers.answers import ANSWERS, KEYS
from pathsynth.readers.intervals import draw_weights
from pathsynth.readers.readings import Readings, collect_readings

KEY = make_key(4)


def collect(key: dict, readers: list[list[dict]]) -> Readings:
    files = [make_answers(key, answers, number) for number, answers in enumerate(readers, 1)]
    return collect_readings(KEYS.validate_python(key), [ANSWERS.validate_python(file) for file in files])


def simulate(seed: int, readers: int = 3, key: dict = KEY) -> Readings:
    rng = np.random.default_rng(seed)
    rates = {"tissue_real": 1.5, "tissue_synthetic": 0.5, "calls_real": -1.0, "calls_synthetic": 0.5}
    difficulty = {trial["image"]: rng.normal() for trial in key["trials"]}
    return collect(key, [simulate_reader(key, rates, difficulty, rng) for _ in range(readers)])


def weigh(readings: Readings, seed: int = 0, resamples: int = 200):
    return draw_weights(len(readings.names), readings.strata, seed, resamples)


def test_perfect_reader_beside_one_who_calls_everything_mucus_and_real():
    readings = collect(KEY, [answer_truly(KEY), answer_truly(KEY, tissue="mucus", origin="real")])
    weights = weigh(readings)
    naming, origin = score_tissue_naming(readings, weights), score_origin(readings, weights)
    assert naming["real"]["value"] == naming["synthetic"]["value"] == pytest.approx(2 / 3)
    assert naming["difference"]["value"] == 0.0
    assert {slug: one["real"]["value"] for slug, one in naming["per_tissue"].items()} == {
        "adipose": 0.5, "mucus": 1.0, "smooth_muscle": 0.5
    }  # fmt: skip
    assert naming["confusion"]["real"] == [[4, 4, 0], [0, 8, 0], [0, 4, 4]]
    assert origin["synthetic_taken_for_real"]["value"] == origin["sensitivity"]["value"] == 0.5
    assert origin["real_taken_for_synthetic"]["value"] == 0.0 and origin["specificity"]["value"] == 1.0
    assert origin["auc"]["value"] == 0.75


def test_d_prime_by_hand():
    # 9 of 12 synthetic and 3 of 12 real images are called synthetic: (9 + 0.5) / 13 and (3 + 0.5) / 13
    answers = answer_truly(KEY)
    for origin in ("real", "synthetic"):
        trials = [number for number, trial in enumerate(KEY["trials"]) if trial["origin"] == origin]
        for place, number in enumerate(trials):
            answers[number]["origin"] = origin if place >= 3 else {"real": "synthetic", "synthetic": "real"}[origin]
    readings = collect(KEY, [answers])
    found = d_primes(readings, np.ones((1, 24)))
    assert found.item() == pytest.approx(norm.ppf(9.5 / 13) - norm.ppf(3.5 / 13)) == pytest.approx(1.2303, abs=1e-4)


@given(st.integers(0, 10_000))
def test_auc_is_that_of_scikit_learn(seed):
    readings = simulate(seed)
    weights = np.random.default_rng(seed).integers(1, 4, (2, 24))
    for row, found in enumerate(areas(readings, weights).T):
        expected = [roc_auc_score(readings.synthetic, readings.rating[row], sample_weight=drawn) for drawn in weights]
        assert found == pytest.approx(expected)


@given(st.integers(0, 10_000))
def test_shares_complement_each_other_and_lie_in_their_intervals(seed):
    readings = simulate(seed)
    found = score_origin(readings, weigh(readings))
    assert found["sensitivity"]["value"] == pytest.approx(1 - found["synthetic_taken_for_real"]["value"], abs=1e-6)
    assert found["specificity"]["value"] == pytest.approx(1 - found["real_taken_for_synthetic"]["value"], abs=1e-6)
    for name in ("sensitivity", "specificity", "d_prime", "auc"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]


def test_order_of_readers_changes_no_value():
    readings = simulate(1)
    files = [readings.select(np.arange(24))]
    turned = Readings(
        **{**vars(files[0]), **{name: getattr(readings, name)[::-1] for name in ("tissue", "origin", "rating", "seconds")}}
    )
    first, second = (score_origin(one, weigh(one)) for one in (readings, turned))
    assert {name: first[name]["value"] for name in first if name != "per_tissue"} == {
        name: second[name]["value"] for name in second if name != "per_tissue"
    }


def test_one_origin_or_no_answers_to_a_tissue_leaves_scores_undefined():
    key = make_key(3) | {"trials": [trial for trial in make_key(3)["trials"] if trial["origin"] == "synthetic"]}
    answers = [answer for answer in answer_truly(key) if answer["tissue"] != "mucus"]
    readings = collect(key, [answers])
    naming, origin = score_tissue_naming(readings, weigh(readings)), score_origin(readings, weigh(readings))
    empty = {"value": None, "low": None, "high": None, "n_answers": 0}
    assert naming["real"] == naming["per_tissue"]["mucus"]["synthetic"] == origin["specificity"] == empty
    assert origin["auc"]["value"] is origin["d_prime"]["value"] is naming["difference"]["value"] is None
    assert naming["synthetic"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n_answers": 6}
    assert score_readers(readings)[0]["auc"] is None and not score_readers(readings)[0]["complete"]


def test_reader_without_an_origin_does_not_count_in_the_mean_over_readers():
    only_real = [answer for answer in answer_truly(KEY) if answer["origin"] == "real"]
    readings = collect(KEY, [answer_truly(KEY), only_real])
    assert score_origin(readings, weigh(readings))["auc"]["value"] == 1.0


def test_wilson_interval_of_a_published_example():
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263
    values = np.repeat([1.0, 0.0, np.nan], [81, 182, 5])
    found = wilson_share(values)
    assert (found["low"], found["high"]) == pytest.approx((0.2553, 0.3662), abs=5e-5) and found["n_answers"] == 263


def test_times_are_quartiles():
    answers = answer_truly(KEY)
    for number, answer in enumerate(answers):
        answer["seconds"] = float(number)
    assert score_times(collect(KEY, [answers]))["all"] == {"lower_quartile": 5.75, "median": 11.5, "upper_quartile": 17.25}
