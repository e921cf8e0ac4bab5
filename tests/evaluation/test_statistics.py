"""Classification scores, intervals and tests: known answers, among them the paper's published table, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from pathsynth.classifiers import metrics
from pathsynth.classifiers.metrics import classification_scores
from pathsynth.data import labels
from pathsynth.evaluation import statistics

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


# Classification scores


def test_paper_published_averages():
    result = classification_scores(*paper_labels(), SLUGS)
    assert result["n_images"] == 90
    assert round(result["macro_precision"], 4) == 0.6817
    assert round(result["macro_recall"], 4) == 0.7111
    assert round(result["macro_f1"], 4) == 0.6727
    assert result["accuracy"] == pytest.approx(64 / 90, abs=1e-6)


def test_paper_table_of_tissues():
    table = classification_scores(*paper_labels(), SLUGS)["per_tissue"]
    rounded = {slug: tuple(round(row[name], 3) for name in ("precision", "recall", "f1")) for slug, row in table.items()}
    assert rounded == PAPER_TABLE


def test_confusion_matrix_has_the_truth_in_rows():
    matrix = metrics.confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 2]), 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_confusion_matrix_of_uint8_labels_does_not_overflow():
    uint8_labels = np.full(3, 19, np.uint8)
    assert metrics.confusion_matrix(uint8_labels, uint8_labels, 20)[19, 19] == 3


def test_absent_tissue_counts_as_zero():
    result = classification_scores(np.array([0, 1]), np.array([0, 1]), ("a", "b", "c", "d"))
    assert result["accuracy"] == 1.0
    assert result["macro_f1"] == 0.5
    assert result["per_tissue"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_order_of_tissues_does_not_matter():
    y_true, y_pred = random_labels(0)
    names = np.random.default_rng(0).permutation(N)
    renamed = classification_scores(names[y_true], names[y_pred], [SLUGS[i] for i in np.argsort(names)])
    assert renamed["macro_f1"] == pytest.approx(classification_scores(y_true, y_pred, SLUGS)["macro_f1"], abs=1e-6)


def test_scores_are_plain_numbers_in_bounds():
    result = metrics.classifier_scores(*random_probabilities(0), SLUGS)
    per_tissue = [value for row in result["per_tissue"].values() for value in row.values()]
    for value in [result["accuracy"], result["macro_f1"], result["auc"], result["ece"], *per_tissue]:
        assert type(value) is float
        assert 0.0 <= value <= 1.0
        assert value == round(value, 6)


def test_calibration_error_by_hand():
    # bins of width 0.5: (0, 0.5] holds 0.5, half right; (0.5, 1] holds 0.9, 0.9, 0.7, two of three right
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5], [0.5, 0.5]])
    y_true = np.array([0, 0, 1, 0, 1])
    expected = 3 / 5 * abs(2 / 3 - 2.5 / 3) + 2 / 5 * abs(1 / 2 - 0.5)
    assert metrics.expected_calibration_error(probabilities, y_true, bins=2) == pytest.approx(expected, abs=1e-6)
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert metrics.expected_calibration_error(certain, np.array([0, 1, 2, 0])) == 0.0
    assert metrics.expected_calibration_error(certain, np.array([1, 2, 0, 1])) == 1.0


def test_area_under_the_curve_by_hand_and_by_scikit_learn():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]])
    # of the four pairs (image of 0, image of 1) three are in order, for either tissue; the third tissue has no images
    assert metrics.classifier_scores(probabilities, np.array([0, 0, 1, 1]), ("a", "b", "c"))["auc"] == 0.75
    probabilities, y_true = random_probabilities(0)
    expected = roc_auc_score(y_true, probabilities, multi_class="ovr", average="macro")
    assert metrics.classifier_scores(probabilities, y_true, SLUGS)["auc"] == pytest.approx(expected, abs=1e-6)


# Bootstrap intervals


def macro_f1_interval(y_true: np.ndarray, y_pred: np.ndarray, seed: int = 0) -> tuple[float, float]:
    ends = statistics.bootstrap_scores(y_true, y_pred, N, seed)
    return ends["macro_f1_low"], ends["macro_f1_high"]


@pytest.mark.parametrize("seed", range(5))
def test_paper_bootstrap_interval(seed: int):
    assert macro_f1_interval(*paper_labels(), seed) == pytest.approx((0.60, 0.73), abs=0.015)
    assert macro_f1_interval(*paper_labels()) == PAPER_INTERVAL


def test_intervals_match_resampling_of_images_scored_by_scikit_learn():
    y_true, y_pred = paper_labels()
    rng = np.random.default_rng(1)
    scores = []
    for _ in range(1000):
        drawn = np.concatenate([rng.choice(np.flatnonzero(y_true == tissue), 10) for tissue in range(N)])
        truth, predicted = y_true[drawn], y_pred[drawn]
        options = {"labels": range(N), "average": "macro", "zero_division": 0}
        precision, _, f1, _ = precision_recall_fscore_support(truth, predicted, **options)
        scores.append(((truth == predicted).mean(), precision, f1))
    low, high = np.quantile(scores, [0.025, 0.975], axis=0)
    result = statistics.bootstrap_scores(y_true, y_pred, N, 0)
    for i, name in enumerate(("accuracy", "macro_precision", "macro_f1")):
        assert (result[f"{name}_low"], result[f"{name}_high"]) == pytest.approx((low[i], high[i]), abs=0.015), name


def test_every_interval_contains_its_score():
    y_true, y_pred = paper_labels()
    result, scores = statistics.bootstrap_scores(y_true, y_pred, N, 3), classification_scores(y_true, y_pred, SLUGS)
    for name in ("accuracy", "macro_precision", "macro_recall", "macro_f1"):
        assert 0.0 <= result[f"{name}_low"] < scores[name] < result[f"{name}_high"] <= 1.0, name
    # accuracy and macro recall are equal where every tissue has as many images
    assert result["accuracy_low"] == pytest.approx(result["macro_recall_low"], abs=2e-6)
    f1 = [row["f1"] for row in scores["per_tissue"].values()]
    assert len(result["f1_low"]) == N
    assert all(low <= value <= high for low, value, high in zip(result["f1_low"], f1, result["f1_high"], strict=True))


def test_intervals_depend_on_the_seed_and_not_on_the_order_of_images():
    y_true, y_pred = random_labels(0)
    order = np.random.default_rng(0).permutation(len(y_true))
    assert macro_f1_interval(y_true[order], y_pred[order], 1) == macro_f1_interval(y_true, y_pred, 1)
    assert macro_f1_interval(y_true, y_pred, 2) != macro_f1_interval(y_true, y_pred, 1)


def test_interval_shrinks_with_more_images_and_vanishes_for_perfect_ones():
    y_true, y_pred = paper_labels()
    low, high = macro_f1_interval(np.tile(y_true, 16), np.tile(y_pred, 16))
    assert high - low < 0.05
    y = np.arange(80) % 8
    assert macro_f1_interval(y, y) == pytest.approx((8 / 9, 8 / 9), abs=1e-6)


def test_bootstrap_of_a_mean_is_stratified():
    values, tissue = np.repeat([0.0, 1.0], 50), np.repeat([0, 1], 50)
    # all images of a tissue are equal, so no sample differs
    assert statistics.bootstrap_mean(values, tissue, np.random.default_rng(0)) == (0.5, 0.5)
    interval = statistics.bootstrap_mean(values, np.zeros(100, int), np.random.default_rng(0))
    assert interval == pytest.approx((0.4, 0.6), abs=0.015)


def test_difference_of_two_predictions_is_paired():
    y_true, first = random_labels(0, 900)
    second = np.where(np.random.default_rng(1).random(900) < 0.05, (first + 1) % N, first)
    result = statistics.bootstrap_difference(y_true, first, second, N, 0)
    expected = [classification_scores(y_true, y_pred, SLUGS)["macro_f1"] for y_pred in (first, second)]
    assert result["difference"] == pytest.approx(expected[0] - expected[1], abs=2e-6)
    assert result["low"] < result["difference"] < result["high"]
    # unpaired intervals would be far wider than that of the few images that differ
    low, high = macro_f1_interval(y_true, first)
    assert result["high"] - result["low"] < 0.6 * (high - low)
    assert statistics.bootstrap_difference(y_true, second, first, N, 0)["difference"] == -result["difference"]


def test_difference_from_itself_is_zero():
    y_true, y_pred = random_labels(2)
    result = statistics.bootstrap_difference(y_true, y_pred, y_pred, N, 0)
    assert result == {"difference": 0.0, "low": 0.0, "high": 0.0}


# Repeated trainings


def test_interval_of_a_mean_by_hand():
    # t of 0.975 with 2 degrees of freedom is 4.302653; the standard deviation of 1, 2, 3 is 1
    assert statistics.mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert statistics.mean_interval([0.7]) == (0.7, None, None, None)
    assert statistics.mean_interval([0.7, 0.7]) == (0.7, 0.0, 0.7, 0.7)
    assert statistics.mean_interval([0.997778] * 3) == (0.997778, 0.0, 0.997778, 0.997778)
    assert all(type(value) is float for value in statistics.mean_interval(np.array([1, 2])))


def test_interval_covers_the_mean_in_95_percent_of_cases():
    samples = np.random.default_rng(0).normal(0.8, 0.05, (2000, 4))
    intervals = [statistics.mean_interval(sample) for sample in samples]
    # four standard errors of 2000 cases are 0.02
    assert np.mean([one.low < 0.8 < one.high for one in intervals]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_paired_t_test_and_interval_match_scipy(n: int):
    first, second = np.random.default_rng(n).normal(size=(2, n))
    expected = ttest_rel(first, second)
    assert statistics.paired_t_test(first - second) == pytest.approx(expected.pvalue, rel=1e-9)
    assert statistics.mean_interval(first - second)[2:] == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9)
    assert statistics.paired_t_test(second - first) == statistics.paired_t_test(first - second)


@pytest.mark.parametrize(
    ("given", "adjusted"),
    [
        # by hand: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 is less than the one before
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.02, 0.5], [1.0, 0.06, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(given: list[float], adjusted: list[float]):
    assert statistics.holm(given) == pytest.approx(adjusted, abs=1e-9)
    assert all(type(value) is float for value in statistics.holm(given))


def test_holm_controls_the_family_wise_error():
    families = np.random.default_rng(0).random((2000, 5))
    significant = np.array([min(statistics.holm(family)) <= 0.05 for family in families])
    assert significant.mean() == pytest.approx(0.05, abs=0.015)
    assert (families.min(axis=1) <= 0.05).mean() > 0.2


# Invalid input

EMPTY, ONE, TWO = np.zeros(0, np.int64), np.array([0]), np.array([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.confusion_matrix(EMPTY, EMPTY, N), "no images"),
        (lambda: metrics.confusion_matrix(ONE, TWO, N), "1 and 2 labels"),
        (lambda: metrics.confusion_matrix(np.array([9]), ONE, N), "expected 0 to 8"),
        (lambda: metrics.confusion_matrix(np.array([-1]), ONE, N), "expected 0 to 8"),
        (lambda: metrics.confusion_matrix(np.array([0.5]), ONE, N), "expected integers"),
        (lambda: metrics.classifier_scores(np.eye(3), np.zeros(3, int), "abc"), "two or more tissues"),
        (lambda: statistics.bootstrap_difference(TWO, TWO, ONE, N, 0), "2, 2 and 1 labels"),
        (lambda: statistics.bootstrap_difference(TWO, TWO, np.array([0, 9]), N, 0), "second: labels"),
        (lambda: statistics.mean_interval([]), "no values"),
        (lambda: statistics.paired_t_test([0.1]), "do not vary"),
        (lambda: statistics.paired_t_test([0.5, 0.5, 0.5]), "do not vary"),
    ],
)
def test_invalid_input_raises(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
