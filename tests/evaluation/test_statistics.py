"""The scores: known answers, among them the paper's published table, and the properties that any such score has."""

from __future__ import annotations

import numpy as np
import pytest

from pathsynth.data import labels
from pathsynth.evaluation import statistics as scores

# Rows: predicted, columns: prompted; both in this order (Choudhary, arXiv 2506.00786, confusion matrix of 90 images).
PAPER_ORDER = (
    "adipose",
    "mucus",
    "cancer-associated stroma",
    "smooth muscle",
    "colorectal adenocarcinoma epithelium",
    "lymphocytes",
    "debris",
    "background",
    "normal colon mucosa",
)
PAPER_COUNTS = (
    (10, 0, 0, 0, 0, 0, 0, 0, 0),
    (0, 6, 0, 0, 5, 2, 0, 0, 4),
    (0, 1, 8, 0, 0, 0, 0, 0, 4),
    (0, 3, 2, 10, 1, 0, 0, 0, 0),
    (0, 0, 0, 0, 4, 0, 0, 0, 1),
    (0, 0, 0, 0, 0, 6, 0, 0, 0),
    (0, 0, 0, 0, 0, 1, 10, 0, 1),
    (0, 0, 0, 0, 0, 1, 0, 10, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 0),
)
PAPER_TABLE = {
    "adipose": (1.000, 1.0, 1.000),
    "background": (0.909, 1.0, 0.952),
    "debris": (0.833, 1.0, 0.909),
    "lymphocytes": (1.000, 0.6, 0.750),
    "mucus": (0.353, 0.6, 0.444),
    "smooth_muscle": (0.625, 1.0, 0.769),
    "normal_colon_mucosa": (0.0, 0.0, 0.000),
    "cancer_associated_stroma": (0.615, 0.8, 0.696),
    "colorectal_adenocarcinoma_epithelium": (0.800, 0.4, 0.533),
}
PAPER_INTERVAL = (0.605971, 0.733457)  # of seed 0
SLUGS = labels.SLUGS
N = len(SLUGS)


def paper_labels() -> tuple[np.ndarray, np.ndarray]:
    """The paper's 90 images as prompted and predicted tissue, in PathMNIST's order."""
    index = [labels.PATHMNIST.index(label) for label in PAPER_ORDER]
    pairs = [
        (index[prompted], index[predicted])
        for predicted, row in enumerate(PAPER_COUNTS)
        for prompted, count in enumerate(row)
        for _ in range(count)
    ]
    y_true, y_pred = np.array(pairs).T
    return y_true, y_pred


def random_labels(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, N, count)
    return y_true, np.where(rng.random(count) < 0.6, y_true, rng.integers(0, N, count))


def random_probabilities(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y_true = rng.permutation(np.arange(count) % N)
    logits = rng.normal(size=(count, N)) + 2.0 * np.eye(N)[y_true]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), y_true


def test_papers_published_averages():
    result = scores.classification_scores(*paper_labels(), SLUGS)
    assert result["n_images"] == 90
    assert round(result["macro_precision"], 4) == 0.6817
    assert round(result["macro_recall"], 4) == 0.7111
    assert round(result["macro_f1"], 4) == 0.6727
    assert result["accuracy"] == pytest.approx(64 / 90, abs=1e-6)


@pytest.mark.parametrize("slug", SLUGS)
def test_papers_table_of_tissues(slug: str):
    row = scores.classification_scores(*paper_labels(), SLUGS)["per_tissue"][slug]
    assert (round(row["precision"], 3), round(row["recall"], 3), round(row["f1"], 3)) == PAPER_TABLE[slug]


@pytest.mark.parametrize("seed", range(5))
def test_papers_bootstrap_interval(seed: int):
    low, high = scores.bootstrap_macro_f1(*paper_labels(), N, seed=seed)
    assert low == pytest.approx(0.60, abs=0.015)
    assert high == pytest.approx(0.73, abs=0.015)


def test_confusion_matrix_has_the_truth_in_rows():
    matrix = scores.confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 2]), 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_confusion_matrix_of_bytes_does_not_overflow():
    labels_of_bytes = np.full(3, 19, np.uint8)
    assert scores.confusion_matrix(labels_of_bytes, labels_of_bytes, 20)[19, 19] == 3


def test_absent_tissue_counts_as_zero():
    result = scores.classification_scores(np.array([0, 1]), np.array([0, 1]), ("a", "b", "c", "d"))
    assert result["accuracy"] == 1.0
    assert result["macro_f1"] == 0.5
    assert result["per_tissue"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize("seed", range(3))
def test_order_of_images_does_not_matter(seed: int):
    y_true, y_pred = random_labels(seed)
    order = np.random.default_rng(seed).permutation(len(y_true))
    assert scores.classification_scores(y_true, y_pred, SLUGS) == scores.classification_scores(
        y_true[order], y_pred[order], SLUGS
    )
    assert scores.bootstrap_macro_f1(y_true, y_pred, N, 1) == scores.bootstrap_macro_f1(y_true[order], y_pred[order], N, 1)


def test_order_of_tissues_does_not_matter():
    y_true, y_pred = random_labels(0)
    names = np.random.default_rng(0).permutation(N)
    renamed = scores.classification_scores(names[y_true], names[y_pred], [SLUGS[i] for i in np.argsort(names)])
    assert renamed["macro_f1"] == pytest.approx(scores.classification_scores(y_true, y_pred, SLUGS)["macro_f1"], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_plain_numbers_in_bounds(seed: int):
    result = scores.classifier_scores(*random_probabilities(seed), SLUGS)
    per_tissue = [value for row in result["per_tissue"].values() for value in row.values()]
    for value in [result["accuracy"], result["macro_f1"], result["auc"], result["ece"], *per_tissue]:
        assert type(value) is float
        assert 0.0 <= value <= 1.0
        assert value == round(value, 6)


@pytest.mark.parametrize("seed", range(3))
def test_interval_holds_the_estimate_and_repeats(seed: int):
    y_true, y_pred = random_labels(seed)
    low, high = scores.bootstrap_macro_f1(y_true, y_pred, N, seed)
    assert 0.0 <= low < scores.classification_scores(y_true, y_pred, SLUGS)["macro_f1"] < high <= 1.0
    assert (low, high) == scores.bootstrap_macro_f1(y_true, y_pred, N, seed)
    assert (low, high) != scores.bootstrap_macro_f1(y_true, y_pred, N, seed + 100)


def test_bootstrap_resamples_what_scikit_learn_scores():
    from sklearn.metrics import f1_score

    y_true, y_pred = paper_labels()
    rng = np.random.default_rng(0)
    slow = []
    for _ in range(400):
        drawn = np.concatenate([rng.choice(np.flatnonzero(y_true == tissue), 10) for tissue in range(N)])
        slow.append(f1_score(y_true[drawn], y_pred[drawn], labels=range(N), average="macro", zero_division=0))
    assert scores.bootstrap_macro_f1(y_true, y_pred, N, 0) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.015)


def test_interval_shrinks_with_more_images_and_grows_with_the_level():
    y_true, y_pred = paper_labels()
    low, high = scores.bootstrap_macro_f1(np.tile(y_true, 16), np.tile(y_pred, 16), N, 0)
    assert high - low < 0.05
    narrow, wide = (scores.bootstrap_macro_f1(y_true, y_pred, N, 0, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_interval_of_a_perfect_set_with_an_absent_tissue():
    y = np.arange(80) % 8
    assert scores.bootstrap_macro_f1(y, y, N, 0) == pytest.approx((8 / 9, 8 / 9), abs=1e-6)


def test_calibration_error_by_hand():
    # Bins of width 0.5: (0, 0.5] holds 0.5, half right; (0.5, 1] holds 0.9, 0.9, 0.7, two of three right.
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5], [0.5, 0.5]])
    y_true = np.array([0, 0, 1, 0, 1])
    expected = 3 / 5 * abs(2 / 3 - 2.5 / 3) + 2 / 5 * abs(1 / 2 - 0.5)
    assert scores.expected_calibration_error(probabilities, y_true, bins=2) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_of_certainty():
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert scores.expected_calibration_error(certain, np.array([0, 1, 2, 0])) == 0.0
    assert scores.expected_calibration_error(certain, np.array([1, 2, 0, 1])) == 1.0


def test_area_under_the_curve():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]])
    # Of the four pairs (image of 0, image of 1) three are in order, for either tissue; the third tissue has no images.
    assert scores.classifier_scores(probabilities, np.array([0, 0, 1, 1]), ("a", "b", "c"))["auc"] == 0.75


def test_area_under_the_curve_agrees_with_scikit_learn():
    from sklearn.metrics import roc_auc_score

    probabilities, y_true = random_probabilities(0)
    expected = roc_auc_score(y_true, probabilities, multi_class="ovr", average="macro")
    assert scores.classifier_scores(probabilities, y_true, SLUGS)["auc"] == pytest.approx(expected, abs=1e-6)


EMPTY = np.zeros(0, np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.confusion_matrix(EMPTY, EMPTY, N), "no images"),
        (lambda: scores.classification_scores(EMPTY, EMPTY, SLUGS), "no images"),
        (lambda: scores.bootstrap_macro_f1(EMPTY, EMPTY, N, 0), "no images"),
        (lambda: scores.expected_calibration_error(np.zeros((0, N)), EMPTY), "no images"),
        (lambda: scores.classifier_scores(np.zeros((0, N)), EMPTY, SLUGS), "no images"),
        (lambda: scores.confusion_matrix(np.array([0]), np.array([0, 1]), N), "1 and 2 labels"),
        (lambda: scores.confusion_matrix(np.array([9]), np.array([0]), N), "expected 0 to 8"),
        (lambda: scores.confusion_matrix(np.array([-1]), np.array([0]), N), "expected 0 to 8"),
        (lambda: scores.confusion_matrix(np.array([[0]]), np.array([0]), N), r"shape \(1, 1\)"),
        (lambda: scores.confusion_matrix(np.array([0.5]), np.array([0]), N), "expected integers"),
        (lambda: scores.classifier_scores(np.eye(3), np.arange(3), SLUGS), "3 columns"),
        (lambda: scores.classifier_scores(np.eye(3), np.zeros(3, int), "abc"), "two or more tissues"),
        (lambda: scores.classifier_scores(np.full((2, 2), np.nan), np.arange(2), "ab"), "not finite"),
        (lambda: scores.bootstrap_macro_f1(*random_labels(0), N, 0, resamples=0), "resamples"),
        (lambda: scores.bootstrap_macro_f1(*random_labels(0), N, 0, level=1.0), "level"),
        (lambda: scores.expected_calibration_error(np.eye(2), np.arange(2), bins=0), "bins"),
    ],
)
def test_impossible_input_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def matrix_scores(y_true: np.ndarray, y_pred: np.ndarray) -> tuple[float, ...]:
    result = scores.classification_scores(y_true, y_pred, SLUGS)
    return tuple(result[name] for name in ("accuracy", "macro_precision", "macro_recall", "macro_f1"))


def test_intervals_of_all_scores_are_of_the_draws_of_the_macro_f1():
    y_true, y_pred = paper_labels()
    result = scores.bootstrap_scores(y_true, y_pred, N, 3)
    assert (result["macro_f1_low"], result["macro_f1_high"]) == scores.bootstrap_macro_f1(y_true, y_pred, N, 3)
    for name, value in zip(
        ("accuracy", "macro_precision", "macro_recall", "macro_f1"), matrix_scores(y_true, y_pred), strict=True
    ):
        assert 0.0 <= result[f"{name}_low"] < value < result[f"{name}_high"] <= 1.0, name
    # accuracy and macro recall are the same number where every tissue has as many images
    assert result["accuracy_low"] == pytest.approx(result["macro_recall_low"], abs=2e-6)
    f1 = [row["f1"] for row in scores.classification_scores(y_true, y_pred, SLUGS)["per_tissue"].values()]
    assert len(result["f1_low"]) == N
    assert all(low <= value <= high for low, value, high in zip(result["f1_low"], f1, result["f1_high"], strict=True))


def test_bootstrap_of_the_macro_f1_gives_the_numbers_of_earlier_versions():
    assert scores.bootstrap_macro_f1(*paper_labels(), N, 0) == PAPER_INTERVAL


def test_intervals_agree_with_scikit_learn_on_drawn_images():
    from sklearn.metrics import accuracy_score, precision_score

    y_true, y_pred = paper_labels()
    rng = np.random.default_rng(1)
    slow = []
    for _ in range(400):
        drawn = np.concatenate([rng.choice(np.flatnonzero(y_true == tissue), 10) for tissue in range(N)])
        truth, seen = y_true[drawn], y_pred[drawn]
        macro = precision_score(truth, seen, labels=range(N), average="macro", zero_division=0)
        slow.append((accuracy_score(truth, seen), macro))
    low, high = np.quantile(slow, [0.025, 0.975], axis=0)
    result = scores.bootstrap_scores(y_true, y_pred, N, 0)
    assert [result["accuracy_low"], result["macro_precision_low"]] == pytest.approx(low, abs=0.02)
    assert [result["accuracy_high"], result["macro_precision_high"]] == pytest.approx(high, abs=0.02)


def test_difference_of_two_predictions_is_paired():
    y_true, first = random_labels(0, 900)
    second = np.where(np.random.default_rng(1).random(900) < 0.05, (first + 1) % N, first)
    result = scores.bootstrap_difference(y_true, first, second, N, 0)
    expected = matrix_scores(y_true, first)[-1] - matrix_scores(y_true, second)[-1]
    assert result["difference"] == pytest.approx(expected, abs=2e-6)
    assert result["low"] < result["difference"] < result["high"]
    # two intervals of their own would be far wider than that of the few images that differ
    low, high = scores.bootstrap_macro_f1(y_true, first, N, 0)
    assert result["high"] - result["low"] < 0.6 * (high - low)
    other_way = scores.bootstrap_difference(y_true, second, first, N, 0)
    assert other_way["difference"] == -result["difference"]


def test_difference_from_itself_is_nothing():
    y_true, y_pred = random_labels(2)
    assert scores.bootstrap_difference(y_true, y_pred, y_pred, N, 0) == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert scores.paired_permutation_test(y_true, y_pred, y_pred, N, 0) == 1.0


def test_paired_test_by_enumeration():
    y_true = np.array([0, 0, 0, 1, 1, 1])
    first = np.array([0, 0, 0, 1, 1, 0])
    second = np.array([0, 1, 1, 0, 1, 1])
    observed = abs(f1_of(y_true, first) - f1_of(y_true, second))
    hits = 0
    for swaps in range(2**6):
        swap = (swaps >> np.arange(6)) & 1 == 1
        one, other = np.where(swap, second, first), np.where(swap, first, second)
        hits += abs(f1_of(y_true, one) - f1_of(y_true, other)) >= observed - 1e-12
    p = scores.paired_permutation_test(y_true, first, second, 2, 0, permutations=20000)
    assert 0.1 < hits / 64 < 0.9
    assert p == pytest.approx(hits / 64, abs=0.015)


def test_unpaired_test_by_enumeration():
    from itertools import combinations

    y_true_a, pred_a = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1])
    y_true_b, pred_b = np.array([0, 0, 1, 1]), np.array([1, 0, 0, 1])
    observed = abs(f1_of(y_true_a, pred_a) - f1_of(y_true_b, pred_b))
    pooled = [np.concatenate([pred_a[y_true_a == tissue], pred_b[y_true_b == tissue]]) for tissue in (0, 1)]
    hits, count = 0, 0
    for zero in combinations(range(5), 3):
        for one in combinations(range(4), 2):
            kept = [np.isin(np.arange(5), zero), np.isin(np.arange(4), one)]
            first = np.concatenate([pooled[t][kept[t]] for t in (0, 1)])
            second = np.concatenate([pooled[t][~kept[t]] for t in (0, 1)])
            hits += abs(f1_of(y_true_a, first) - f1_of(y_true_b, second)) >= observed - 1e-12
            count += 1
    p = scores.unpaired_permutation_test(y_true_a, pred_a, y_true_b, pred_b, 2, 0, permutations=20000)
    assert 0.1 < hits / count < 0.9
    assert p == pytest.approx(hits / count, abs=0.015)


def f1_of(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(y_true, y_pred, labels=[0, 1], average="macro", zero_division=0)


def drawn_predictions(rng: np.random.Generator, y_true: np.ndarray, right: float) -> np.ndarray:
    return np.where(rng.random(len(y_true)) < right, y_true, rng.integers(0, N, len(y_true)))


def p_values(right: float) -> np.ndarray:
    """p of the paired and the unpaired test (60, 2) of a set of 60 % against another."""
    result = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y_true = np.arange(180) % N
        first, second = drawn_predictions(rng, y_true, 0.6), drawn_predictions(rng, y_true, right)
        result.append(
            (
                scores.paired_permutation_test(y_true, first, second, N, seed, 199),
                scores.unpaired_permutation_test(y_true, first, y_true, second, N, seed, 199),
            )
        )
    return np.array(result)


def test_permutation_tests_are_fair_without_a_difference_and_see_a_large_one():
    equal = p_values(0.6)
    # 3 of 60 are expected below 0.05; 9 or more happen in 4 of 1000 runs
    assert ((equal <= 0.05).sum(axis=0) <= 8).all()
    assert (np.abs(equal.mean(axis=0) - 0.5) < 0.12).all()
    assert ((p_values(0.85) <= 0.05).mean(axis=0) > 0.9).all()


@pytest.mark.parametrize("permutations", [1, 499, 1300])
def test_permutation_tests_repeat_and_do_not_depend_on_the_order(permutations: int):
    y_true, first = random_labels(0)
    second = random_labels(5)[1]
    order = np.random.default_rng(0).permutation(len(y_true))
    p = scores.paired_permutation_test(y_true, first, second, N, 0, permutations)
    assert 1 / (1 + permutations) <= p <= 1.0
    assert p == scores.paired_permutation_test(y_true[order], first[order], second[order], N, 0, permutations)
    p = scores.unpaired_permutation_test(y_true, first, y_true[:90], second[:90], N, 0, permutations)
    assert p == scores.unpaired_permutation_test(y_true[order], first[order], y_true[:90], second[:90], N, 0, permutations)


def test_permutations_in_pieces_are_those_at_once(monkeypatch):
    y_true, first = random_labels(0)
    second = random_labels(5)[1]
    whole = scores.paired_permutation_test(y_true, first, second, N, 0, 900)
    monkeypatch.setattr(scores, "PERMUTATIONS_AT_ONCE", 7)
    assert scores.paired_permutation_test(y_true, first, second, N, 0, 900) == whole


@pytest.mark.parametrize(
    ("difference", "p", "sentence"),
    [
        (0.012, 0.34, "no difference can be told at n = 450 (macro F1 +0.012, p = 0.34)"),
        (0.068, 0.001, "r16 is better than r4 at n = 450 (macro F1 +0.068, p = 0.001)"),
        (-0.068, 0.0005, "r4 is better than r16 at n = 450 (macro F1 -0.068, p = 0.0005)"),
        (0.0, 1.0, "no difference can be told at n = 450 (macro F1 +0.000, p = 1)"),
    ],
)
def test_sentence_of_a_difference(difference: float, p: float, sentence: str):
    assert scores.difference_sentence(difference, p, 450, ("r16", "r4")) == sentence


@pytest.mark.parametrize(
    ("given", "adjusted"),
    [
        # by hand: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 is less than the one before
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.02, 0.5], [1.0, 0.06, 1.0]),
        ([0.3, 0.3], [0.6, 0.6]),
        ([0.04], [0.04]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(given: list[float], adjusted: list[float]):
    assert scores.holm(given) == pytest.approx(adjusted, abs=1e-9)
    assert all(type(value) is float for value in scores.holm(given))


def test_holm_calls_a_difference_where_there_is_none_in_one_family_of_twenty():
    rng = np.random.default_rng(0)
    families = rng.random((2000, 5))
    called = np.array([min(scores.holm(family)) <= 0.05 for family in families])
    assert called.mean() == pytest.approx(0.05, abs=0.015)
    assert (families.min(axis=1) <= 0.05).mean() > 0.2


ONE, TWO = np.array([0]), np.array([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.bootstrap_scores(EMPTY, EMPTY, N, 0), "no images"),
        (lambda: scores.bootstrap_scores(TWO, TWO, N, 0, resamples=0), "resamples"),
        (lambda: scores.bootstrap_scores(TWO, TWO, N, 0, level=0.0), "level"),
        (lambda: scores.bootstrap_difference(TWO, TWO, ONE, N, 0), "2, 2 and 1 labels"),
        (lambda: scores.bootstrap_difference(TWO, TWO, TWO, N, 0, resamples=0), "resamples"),
        (lambda: scores.paired_permutation_test(TWO, TWO, ONE, N, 0), "2, 2 and 1 labels"),
        (lambda: scores.paired_permutation_test(EMPTY, EMPTY, EMPTY, N, 0), "y_true: no images"),
        (lambda: scores.paired_permutation_test(TWO, TWO, np.array([0, 9]), N, 0), "second: labels"),
        (lambda: scores.paired_permutation_test(TWO, TWO, TWO, N, 0, permutations=0), "permutations"),
        (lambda: scores.unpaired_permutation_test(TWO, TWO, EMPTY, EMPTY, N, 0), "no images"),
        (lambda: scores.unpaired_permutation_test(TWO, TWO, TWO, TWO, N, 0, permutations=0), "permutations"),
        (lambda: scores.holm([0.5, 1.5]), "p_values"),
        (lambda: scores.holm([0.5, float("nan")]), "p_values"),
    ],
)
def test_impossible_comparisons_are_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
