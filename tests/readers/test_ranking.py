"""Bradley-Terry ranking: a published fit, known strengths, ties, separation and designs that are not connected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers.fake_answers import make_answers, make_preference_key, simulate_choices
from scipy.special import expit, logit

from pathsynth.readers.answers import ANSWERS, KEYS, Collection
from pathsynth.readers.ranking import can_fit, fit_strengths
from pathsynth.readers.results import evaluate_answers

PAIRS = [("r8", "r16"), ("r8", "r32"), ("r16", "r32")]
STRENGTHS = {"r8": -0.8, "r16": 0.1, "r32": 0.7}


def evaluate(key: dict, readers: list[list[dict]]) -> dict:
    files = [ANSWERS.validate_python(make_answers(key, answers, number)) for number, answers in enumerate(readers, 1)]
    return evaluate_answers(KEYS.validate_python(key), Collection(files, []))


def choose(key: dict, choice) -> list[dict]:
    return [{"id": trial["id"], "choice": choice(trial), "seconds": 1.0} for trial in key["trials"]]


def test_strengths_of_a_published_fit():
    # citations between four journals (Stigler 1994; fitted in Turner and Firth, Journal of Statistical Software 2012)
    wins = np.zeros((1, 4, 4))
    for first, second, won, lost in (
        (0, 1, 730, 33), (0, 2, 498, 320), (0, 3, 221, 284), (1, 2, 68, 813), (1, 3, 17, 276), (2, 3, 142, 325)
    ):  # fmt: skip
        wins[0, first, second], wins[0, second, first] = won, lost
    strengths = fit_strengths(wins)[0]
    assert strengths - strengths[0] == pytest.approx([0.0, -2.94907, -0.47957, 0.26895], abs=1e-5)


@given(st.integers(1, 50), st.integers(1, 50))
def test_two_configurations_have_the_logit_of_their_share(won, lost):
    strengths = fit_strengths(np.array([[[0.0, won], [lost, 0.0]]]))[0]
    assert strengths == pytest.approx([logit(won / (won + lost)) / 2, -logit(won / (won + lost)) / 2], abs=1e-8)


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_expected_wins_are_the_observed_ones(seed, n):
    wins = np.random.default_rng(seed).uniform(0.1, 30, (3, n, n)) * (1 - np.eye(n))
    strengths = fit_strengths(wins)
    chance = expit(strengths[:, :, None] - strengths[:, None, :])
    expected = ((wins + wins.transpose(0, 2, 1)) * chance).sum(axis=2)
    assert expected == pytest.approx(wins.sum(axis=2), abs=1e-6) and strengths.mean(axis=1) == pytest.approx(0.0, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 7))
def test_fit_exists_where_each_has_beaten_each_through_others(seed, n):
    wins = np.random.default_rng(seed).random((5, n, n)) < 0.3
    expected = []
    for table in wins:
        reached = np.linalg.matrix_power(table.astype(int) + np.eye(n, dtype=int), n) > 0
        expected.append(reached.all())
    assert can_fit(wins.astype(float)).tolist() == expected


def test_known_strengths_lie_in_their_intervals():
    key, rng = make_preference_key(PAIRS, slots=10), np.random.default_rng(0)
    results = evaluate(key, [simulate_choices(key, STRENGTHS, rng) for _ in range(10)])
    assert [one["name"] for one in results["ranking"]["configurations"]] == ["r32", "r16", "r8"]
    for one in results["ranking"]["configurations"]:
        assert one["strength_low"] < STRENGTHS[one["name"]] < one["strength_high"]
        assert one["strength"] == pytest.approx(STRENGTHS[one["name"]], abs=0.25)
    assert results["choices"]["left"]["low"] < 0.5 < results["choices"]["left"]["high"]
    assert results["choices"]["ties"]["value"] == 0.0


def test_ties_count_half():
    key = make_preference_key([("r8", "r16")], slots=4)
    results = evaluate(key, [choose(key, lambda _: "tie"), choose(key, lambda trial: "left")])
    best = results["ranking"]["configurations"]
    assert [one["wins"] for one in best] == [12.0, 12.0] and [one["strength"] for one in best] == [0.0, 0.0]
    assert results["choices"]["ties"]["value"] == 0.5 and results["choices"]["left"]["value"] == 1.0


def test_configuration_that_always_wins_gets_a_finite_strength_and_this_is_said():
    key = make_preference_key(PAIRS, slots=4)
    results = evaluate(
        key,
        [choose(key, lambda trial: "left" if trial["left"] == "r32" else "right" if trial["right"] == "r32" else "tie")] * 3,
    )
    ranking = results["ranking"]
    assert ranking["regularised"] and ranking["configurations"][0]["name"] == "r32"
    # 36 wins of 36, with half a win on both sides: 36.5 of 37
    chance = next(one for one in ranking["pairs"] if one["second"] == "r8")["chance"]
    assert chance == pytest.approx(36.5 / 37, abs=0.01)


def test_configurations_that_were_never_compared_are_named():
    key = make_preference_key([("r8", "r16"), ("sd", "xl")])
    results = evaluate(key, [choose(key, lambda _: "left")])
    assert results["ranking"] == {"undefined": "never compared with each other: r8, r16 | sd, xl"}


def test_tissue_without_answers_has_a_reason():
    key = make_preference_key(PAIRS)
    answers = [
        answer for answer, trial in zip(choose(key, lambda _: "left"), key["trials"], strict=True) if trial["tissue"] == "mucus"
    ]
    results = evaluate(key, [answers])
    assert results["per_tissue"]["adipose"] == {"undefined": "no answers"}
    assert "undefined" not in results["per_tissue"]["mucus"]
    assert results["notes"] == ["1 of 1 readers left 24 trials unanswered; the answers given are used."]
