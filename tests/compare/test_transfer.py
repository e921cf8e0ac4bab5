"""Agreement of rankings on two benchmarks: by hand, in simulated tables, and in a Markdown file."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pathsynth.compare.markdown import fill_tables
from pathsynth.compare.table import TEXT_COLUMNS
from pathsynth.compare.transfer import Agreement, compare_rankings, kendall_tau
from pathsynth.core.errors import DataError

NAMES = "abcdefgh"


def rank(means: np.ndarray, rng: np.random.Generator, noise: float, trainings: int = 3) -> dict[str, dict[int, float]]:
    """Scores of configurations with these means, each training with its own noise."""
    noisy = means[:, None] + rng.normal(0, noise, (len(means), trainings))
    return {name: dict(enumerate(scores, start=1)) for name, scores in zip(NAMES, noisy, strict=False)}


def saved_runs() -> pd.DataFrame:
    """Five configurations, two trainings each, on two benchmarks: `judge_f1` ranks them alike, `open_set_f1` in reverse."""
    rows = [
        dict.fromkeys(TEXT_COLUMNS, name)
        | {"benchmark": benchmark, "config": name + benchmark, "training": training}
        | {"judge_f1": 0.1 * i + 0.01 * training, "open_set_f1": sign * 0.1 * i, "n_images": 9}
        for benchmark, sign in (("phantom", 1), ("real", -1))
        for i, name in enumerate(NAMES[:5])
        for training in (1, 2)
    ]
    scores = ("macro_f1", "accepted_judge_f1", "precision", "coverage", "structure_distance")
    return pd.DataFrame(rows).assign(**dict.fromkeys(scores)).convert_dtypes()


def test_tau_by_hand():
    first = {"a": {1: 0.1, 2: 0.2}, "b": {1: 0.3, 2: 0.3}, "c": {1: 0.5, 2: 0.4}, "d": {1: 0.6, 2: 0.8}}
    # five of six pairs in the same order, one reversed: (5 - 1) / 6
    second = {"a": {7: 0.1}, "b": {7: 0.3}, "c": {7: 0.2}, "d": {7: 0.4}}
    found = compare_rankings(first, second)
    assert found.tau == pytest.approx(4 / 6) and found.within_first == 1.0 and found.within_second is None
    # of the 24 orders of four, 4 have at most one reversed pair, and 4 all but at most one
    assert found.p == pytest.approx(8 / 24)
    assert found.low is not None and found.high is not None and found.low < 4 / 6 <= found.high


def test_tau_of_rows_is_that_of_scipy():
    from scipy.stats import kendalltau

    # few values, so that there are ties
    first, second = np.random.default_rng(0).integers(4, size=(2, 200, 8))
    expected = [kendalltau(one, other).statistic for one, other in zip(first, second, strict=True)]
    assert kendall_tau(first, second) == pytest.approx(np.array(expected), nan_ok=True)


def test_interval_covers_the_truth_and_is_wide_for_eight_configurations():
    rng, covered, widths = np.random.default_rng(0), [], []
    for seed in range(40):
        # a correlation of 1 / 2 between the true means, so tau = 2 / pi arcsin(1 / 2) = 1 / 3 for normal scores
        common, own, other = rng.normal(size=(3, 8))
        found = compare_rankings(rank(common + own, rng, 0.3), rank(common + other, rng, 0.3), seed=seed)
        covered.append(found.low <= 1 / 3 <= found.high)
        widths.append(found.high - found.low)
    assert np.mean(covered) >= 0.85 and 0.6 < np.mean(widths) < 1.5


def test_equal_rankings_without_noise_have_no_other_tau_in_the_interval():
    same = {name: {training: i + 1e-6 * training for training in (1, 2, 3)} for i, name in enumerate(NAMES)}
    found = compare_rankings(same, same)
    assert found.low == found.high == 1


def test_tau_between_trainings_falls_with_their_noise():
    rng = np.random.default_rng(0)
    means = rng.normal(size=8)
    found = compare_rankings(rank(means, rng, 0.01), rank(means, rng, 5.0))
    assert found.within_first > 0.9 and found.within_second < 0.6


def test_ties_leave_tau_undefined():
    equal = {name: {1: 1.0, 2: 1.0} for name in NAMES}
    assert compare_rankings(equal, rank(np.arange(8), np.random.default_rng(0), 0)) == Agreement(*[None] * 5, 1.0)


@pytest.mark.parametrize("second", [{"a": {1: 0.5}}, {"a": {1: 0.5}, "b": {}}])
def test_rankings_of_other_configurations_are_refused(second):
    with pytest.raises(ValueError, match="same configurations"):
        compare_rankings({"a": {1: 0.1}, "b": {1: 0.2}}, second)


def test_table_has_a_row_for_each_score_that_the_configurations_have(tmp_path):
    text = fill_tables("<!-- transfer: phantom/real -->\n<!-- end -->", "x.md", saved_runs(), tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[1:-1]]
    assert rows[0][-1] == "tau between trainings, real"
    # p of one order in 5!, on two sides, for two rows; the interval has no width
    expected = ["5", "2", "1.00", "-", f"{2 * 2 / 120:.3f}", "1.00", "1.00"]
    assert rows[2:] == [["Judge F1", *expected], ["Open-set F1", *expected[:2], "-1.00", *expected[3:]]]


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("phantom", "x.md: `<!-- transfer: phantom -->` needs two benchmarks, such as"),
        ("real/real", "x.md: `<!-- transfer: real/real -->` needs two benchmarks"),
        ("phantom/moon", "x.md: has a mark for moon, which has no saved run"),
        ("phantom/few", "x.md: `<!-- transfer: phantom/few -->` needs 5 configurations with runs on both benchmarks"),
    ],
)
def test_mark_that_cannot_be_filled_is_an_error(mark, message, tmp_path):
    runs = saved_runs()
    few = runs[(runs["benchmark"] == "real") & (runs["lora"] != "a")].assign(benchmark="few")
    with pytest.raises(DataError, match=message):
        fill_tables(f"<!-- transfer: {mark} -->\n<!-- end -->", "x.md", pd.concat([runs, few]), tmp_path)
