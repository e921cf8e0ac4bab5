"""Agreement: kappas by hand and of published examples, readers against gate and judge, and repeated images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers.fake_answers import answer_truly, make_key
from readers.test_accuracy import collect, simulate, weigh
from sklearn.metrics import cohen_kappa_score

from pathsynth.readers.agreement import (
    count_ratings,
    fleiss_kappas,
    list_disputed,
    score_agreement,
    score_fleiss,
    score_observers,
    score_pair,
    score_repeats,
)
from pathsynth.readers.intervals import draw_weights
from pathsynth.readers.readings import NONE

KEY = make_key(4)
# 14 raters put 10 subjects into 5 categories; the worked example of most textbooks and of Wikipedia, kappa 0.210.
EXAMPLE = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0], [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_fleiss_kappa_of_the_published_example():
    assert fleiss_kappas(np.array(EXAMPLE), np.ones((1, 10))).item() == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_by_hand():
    # three images by two readers: aa, bb, ab; observed 2/3, expected 1/2
    answers = np.array([[0, 1, 0], [0, 1, 1]])
    assert fleiss_kappas(count_ratings(answers, 2), np.ones((1, 3))).item() == pytest.approx(1 / 3)
    # an image that only one reader has seen changes nothing
    alone = np.array([[0, 1, 0, 1], [0, 1, 1, NONE]])
    found = score_fleiss(alone, 2, draw_weights(2, np.zeros(4), 0, 50))
    assert found["kappa"] == pytest.approx(1 / 3, abs=1e-6) and found["n_images"] == 3


def test_weights_of_images_count_like_repeated_rows():
    counts = np.array(EXAMPLE)
    weights = np.random.default_rng(0).integers(0, 4, 10)
    repeated = np.repeat(counts, weights, axis=0)
    expected = fleiss_kappas(repeated, np.ones((1, len(repeated)))).item()
    assert fleiss_kappas(counts, weights[None].astype(float)).item() == pytest.approx(expected)


def test_kappa_without_meaning_has_a_reason():
    weights = draw_weights(2, np.zeros(3), 0, 50)
    assert score_fleiss(np.ones((2, 3), int), 2, weights) == {"undefined": "all answers are the same"}
    assert score_fleiss(np.array([[0, NONE, 1], [NONE, 0, NONE]]), 2, weights) == {
        "undefined": "no image was seen by two readers"
    }
    assert score_pair(np.array([1, NONE]), np.array([1, 1])) == {
        "n_images": 1,
        "agreement": 1.0,
        "undefined": "all answers are the same",
    }
    assert score_pair(np.array([1, NONE]), np.array([NONE, 1])) == {"n_images": 0, "undefined": "no images in common"}


def test_cohen_kappa_by_hand():
    # 50 images: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, expected 0.5
    first, second = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [20, 5, 10, 15], axis=0).T
    assert score_pair(first, second) == {"n_images": 50, "agreement": 0.7, "kappa": 0.4}


@given(st.integers(0, 10_000))
def test_pairs_are_symmetric_and_bounded(seed):
    readings = simulate(seed)
    found = score_agreement(readings, weigh(readings, resamples=20))
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [("R1", "R2"), ("R1", "R3"), ("R2", "R3")]
    assert found["pairs"][0]["tissue"]["kappa"] == pytest.approx(
        cohen_kappa_score(readings.tissue[1], readings.tissue[0]), abs=1e-6
    )
    assert -1 <= found["fleiss"]["tissue"]["kappa"] <= 1


def test_same_answers_agree_fully():
    readings = collect(KEY, [answer_truly(KEY)] * 3)
    found = score_agreement(readings, weigh(readings))
    assert found["fleiss"]["tissue"]["kappa"] == found["fleiss"]["origin"]["kappa"] == 1.0
    assert {pair["origin"]["kappa"] for pair in found["pairs"]} == {1.0}


def test_reader_against_gate_and_judge():
    key = make_key(1)
    key["trials"][0]["gate"] = {"predicted": "mucus", "confidence": 0.6}  # real adipose
    key["trials"][2]["gate"] = {"predicted": "adipose", "confidence": 0.6}  # real mucus
    for trial in key["trials"]:
        trial["judge"] = None
    answers = answer_truly(key)
    answers[2]["tissue"] = "smooth_muscle"
    answers[4]["tissue"] = "mucus"
    readings = collect(key, [answers])
    found = score_observers(readings, weigh(readings))
    assert list(found) == ["gate"]
    real = found["gate"]["real"]
    assert real["agreement"]["value"] == 0.0
    assert [real[name] for name in ("differ", "reader_right", "observer_right", "neither_right")] == [3, 1, 1, 1]
    assert found["gate"]["synthetic"]["agreement"]["value"] == 1.0
    assert [(row["trial"], row["gate"], row["named"]) for row in list_disputed(readings)] == [
        ("001", "mucus", "adipose"), ("003", "adipose", "smooth_muscle"), ("005", "smooth_muscle", "mucus")
    ]  # fmt: skip


def test_key_without_predictions_has_no_observers():
    key = make_key(2)
    for trial in key["trials"]:
        trial |= {"gate": None, "judge": None}
    readings = collect(key, [answer_truly(key)])
    assert score_observers(readings, weigh(readings)) == {} and list_disputed(readings) == []


def test_repeats_show_the_consistency_of_each_reader():
    key = make_key(4, repeats=4)
    steady, changing = answer_truly(key), answer_truly(key)
    for answer in changing[-4:-2]:
        answer |= {"tissue": "mucus", "confidence": 2}
    readings = collect(key, [steady, changing[:-1]])
    found = score_repeats(readings, 0)
    assert found is not None and [one["tissue"]["value"] for one in found["readers"]] == [1.0, pytest.approx(1 / 3, abs=1e-6)]
    assert found["tissue"]["n_answers"] == 7 and found["origin"]["value"] == 1.0
    assert found["readers"][1]["confidence_difference"] == 2.0
    assert score_repeats(simulate(0), 0) is None


def test_consistency_of_all_readers_covers_other_readers():
    # half of 20 readers always change their mind: answers of one reader are no independent ones
    key = make_key(4, repeats=12)
    changing = answer_truly(key)
    for answer in changing[-12:]:
        answer |= {"tissue": "mucus" if answer["tissue"] == "adipose" else "adipose"}
    found = score_repeats(collect(key, [answer_truly(key), changing] * 10), 0)
    assert found is not None and found["tissue"]["value"] == 0.5
    # readers alone: 2 · 2.09 · sqrt(0.25 / 19) = 0.48; Wilson's interval of 240 answers would be 0.13
    assert found["tissue"]["high"] - found["tissue"]["low"] == pytest.approx(0.48, abs=0.06)
