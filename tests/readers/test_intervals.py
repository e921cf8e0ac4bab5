"""Intervals over readers and images: known answers, and their coverage of the truth in simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers.fake_answers import answer_truly, make_answers, make_key, simulate_reader
from readers.test_accuracy import collect
from scipy.special import expit
from scipy.stats import t

from pathsynth.readers.accuracy import score_origin, score_readers, score_tissue_naming
from pathsynth.readers.answers import ANSWERS, KEYS
from pathsynth.readers.intervals import count_clusters, draw_weights, expanded_interval, share, unit_weights, weighted_share
from pathsynth.readers.power import find_intercept, mean_chance, simulate_answers, simulate_power, simulate_width
from pathsynth.readers.readings import collect_readings

SD = {"reader": 0.5, "image": 0.5}


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 4), st.integers(2, 4))
def test_resamples_keep_the_size_of_readers_and_strata(seed, n_readers, first, second):
    strata = np.repeat([3, 7], [first, second])
    weights = draw_weights(n_readers, strata, seed, 10)
    assert weights.readers.sum(axis=1) == pytest.approx(n_readers)
    assert weights.images[:, strata == 3].sum(axis=1) == pytest.approx(first)
    assert weights.images[:, strata == 7].sum(axis=1) == pytest.approx(second)


@given(st.integers(0, 1000))
def test_weighted_share_is_that_of_repeated_answers(seed):
    rng = np.random.default_rng(seed)
    values = rng.choice([0.0, 1.0, np.nan], (4, 6))
    readers, images = rng.integers(0, 3, 4), rng.integers(0, 3, 6)
    weights = unit_weights(4, 6)
    drawn = type(weights)(readers[None].astype(float), images[None].astype(float))
    repeated = np.repeat(np.repeat(values, readers, axis=0), images, axis=1)
    known = repeated[np.isfinite(repeated)]
    assert weighted_share(values, drawn)[0] == pytest.approx(known.mean() if len(known) else np.nan, nan_ok=True)


def test_variance_of_the_resamples_is_that_of_owens_bootstrap():
    # expected with n - 1 draws of a balanced table: readers s² / R and images s² / N, each answer's own three times
    rng, n_readers, n_images = np.random.default_rng(0), 30, 40
    values = rng.normal(0, 2.0, (n_readers, 1)) + rng.normal(0, 1.0, n_images) + rng.normal(0, 3.0, (n_readers, n_images))
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    error = values - rows[:, None] - columns + values.mean()
    single = (error**2).sum() / ((n_readers - 1) * (n_images - 1))
    expected = rows.var(ddof=1) / n_readers + columns.var(ddof=1) / n_images + single / (n_readers * n_images)
    found = weighted_share(values, draw_weights(n_readers, np.zeros(n_images), 0, 20_000)).var()
    assert found == pytest.approx(expected, rel=0.04)


def test_few_clusters_widen_the_interval_and_one_has_none():
    values = np.random.default_rng(0).normal(size=100_000)
    # tails of Student's t with 4 degrees of freedom at 2.776 are 0.025, those of a normal variable 0.00275
    assert expanded_interval(values, 5) == pytest.approx((-2.776, 2.776), abs=0.05)
    assert expanded_interval(values, 100_000) == pytest.approx((-1.96, 1.96), abs=0.03)
    assert expanded_interval(values, 1) is None and expanded_interval(np.array([np.nan]), 9) is None


def test_one_reader_has_an_interval_over_images():
    found = share(np.repeat([[1.0, 0.0]], 50, axis=1), draw_weights(1, np.zeros(100), 0))
    assert found["value"] == 0.5 and (found["low"], found["high"]) == pytest.approx((0.4, 0.6), abs=0.02)


def test_strata_of_one_image_are_drawn_together():
    # a study with `-n 2`: one real and one synthetic image of each tissue
    readings = collect(make_key(1), [answer_truly(make_key(1), tissue="mucus")])
    weights = draw_weights(1, readings.strata, 0)
    assert weights.images.sum(axis=1) == pytest.approx(6) and (weights.images != 1).any(axis=0).all()
    found = score_tissue_naming(readings, weights)["real"]
    assert found["value"] == pytest.approx(1 / 3, abs=1e-4) and found["high"] - found["low"] > 0.3


def test_simulated_answers_have_the_given_rate():
    rng = np.random.default_rng(0)
    assert mean_chance(find_intercept(0.2, 1.5), 1.5) == pytest.approx(0.2)
    answers, own = simulate_answers(0.3, 1.0, 0.5, 300, 300, rng)
    assert answers.mean() == pytest.approx(0.3, abs=0.03) and own.mean() == pytest.approx(0.3, abs=0.03)


def test_more_readers_and_more_images_make_narrower_intervals():
    rows = simulate_power(0.5, 0.5, 0.5, [5, 20], [40, 160], simulations=10)
    widths = {(row["readers"], row["images"]): row["width"] for row in rows}
    assert widths[5, 40] > widths[5, 160] > widths[20, 160] and widths[5, 40] > widths[20, 40] > widths[20, 160]


@pytest.mark.parametrize("n_readers", [1, 5, 20])
def test_intervals_cover_the_truth_and_are_not_too_wide(n_readers):
    simulations, n_images = 40, 60
    found = simulate_width(0.4, SD["reader"], SD["image"], n_readers, n_images, simulations)
    # at a coverage of 0.95, fewer than 33 of 40 have a probability of 0.0005
    assert found["coverage"] * simulations >= 33
    # the exact interval of a normal mean; for one reader, readers are alike because it covers images only
    rng, reader_sd = np.random.default_rng(1), SD["reader"] if n_readers > 1 else 0.0
    logits = rng.normal(0.0, reader_sd, (500, n_readers, 1)) + rng.normal(0.0, SD["image"], (500, 1, n_images))
    chances = expit(find_intercept(0.4, np.hypot(reader_sd, SD["image"])) + logits)
    shares = (rng.random(chances.shape) < chances).mean(axis=(1, 2))
    exact = 2 * t.ppf(0.975, count_clusters(n_readers, n_images) - 1) * shares.std()
    # several readers: single answers count up to three times
    assert 0.85 * exact < found["width"] < 1.4 * exact


def measure_coverage(simulations: int, n_readers: int = 20, per_group: int = 10, seed: int = 0) -> dict[str, float]:
    """Evaluates simulated studies, and counts how often the known truth lies in the intervals.

    Readers differ in their logits and images in their difficulty, both with the standard deviations of SD.

    Returns:
        Coverage of the means over readers and images by score, and of `each_reader`: the rates of single readers.
    """
    rng, key = np.random.default_rng(seed), make_key(per_group)
    means = {"tissue_real": 1.5, "tissue_synthetic": 0.8, "calls_real": -0.9, "calls_synthetic": 0.0}
    spread = float(np.hypot(*SD.values()))
    truth = {name: mean_chance(logit, spread) for name, logit in means.items()}
    hits: dict[str, list[bool]] = {}
    for _ in range(simulations):
        difficulty = {trial["image"]: rng.normal(0, SD["image"]) for trial in key["trials"]}
        rates = [{name: logit + rng.normal(0, SD["reader"]) for name, logit in means.items()} for _ in range(n_readers)]
        files = [make_answers(key, simulate_reader(key, one, difficulty, rng), number) for number, one in enumerate(rates, 1)]
        readers = [ANSWERS.validate_python(file) for file in files]
        readings = collect_readings(KEYS.validate_python(key), readers)
        weights = draw_weights(n_readers, readings.strata, int(rng.integers(2**31)))
        naming, origin = score_tissue_naming(readings, weights), score_origin(readings, weights)
        checked = {
            "tissue_real": (naming["real"], truth["tissue_real"]),
            "tissue_synthetic": (naming["synthetic"], truth["tissue_synthetic"]),
            "difference": (naming["difference"], truth["tissue_real"] - truth["tissue_synthetic"]),
            "synthetic_taken_for_real": (origin["synthetic_taken_for_real"], 1 - truth["calls_synthetic"]),
            "real_taken_for_synthetic": (origin["real_taken_for_synthetic"], truth["calls_real"]),
        }
        for name, (score, true) in checked.items():
            hits.setdefault(name, []).append(score["low"] <= true <= score["high"])
        for one, scores in zip(rates, score_readers(readings), strict=True):
            true = 1 - mean_chance(one["calls_synthetic"], SD["image"])
            score = scores["synthetic_taken_for_real"]
            hits.setdefault("each_reader", []).append(score["low"] <= true <= score["high"])
    return {name: float(np.mean(values)) for name, values in hits.items()}


def test_twenty_simulated_readers_with_known_accuracies_come_back_within_their_intervals():
    simulations = 5
    found = measure_coverage(simulations)
    # of 5 intervals at 0.95 fewer than 3 cover the truth with a probability of 0.001
    assert all(value >= 3 / simulations for name, value in found.items() if name != "each_reader"), found
    # 100 intervals: fewer than 88 have a probability of 0.002
    assert found["each_reader"] >= 0.88, found


if __name__ == "__main__":
    import sys

    print(measure_coverage(int(sys.argv[1])))
