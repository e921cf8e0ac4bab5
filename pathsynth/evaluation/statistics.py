"""Intervals and tests: pure functions, arrays in, plain numbers out.

The bootstrap resamples images, so its intervals cover one training; Student's t covers repeated trainings. Macro averages run
over every tissue of the benchmark: a tissue that was neither prompted nor predicted counts as 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from pathsynth.classifiers.metrics import check_labels, confusion_matrix, round_score

RESAMPLES = 2000


def bootstrap_counts(table: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Bootstrap samples of a contingency table, stratified by row.

    The number of images per prompt is fixed by design, so each row keeps its sum. Drawing n images with replacement is
    one multinomial draw from the row (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).

    Args:
        table: integers (tissues, outcomes), the number of images of each tissue with each outcome.
        rng: source of the draws.
        resamples: number of samples.

    Returns:
        int64 (resamples, tissues, outcomes).
    """
    drawn = np.zeros((resamples, *table.shape), np.int64)
    for tissue, row in enumerate(table):
        if row.sum():
            drawn[:, tissue] = rng.multinomial(row.sum(), row / row.sum(), size=resamples)
    return drawn


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """Bounds (2, ...) of the 95 % percentile interval of values (resamples, ...)."""
    return np.quantile(values, [0.025, 0.975], axis=0)


def bootstrap_mean(
    values: np.ndarray, labels: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean (N,), stratified by tissue.

    If all values within each tissue are equal, the interval has zero width, which does not mean that new images would agree.
    """
    totals = np.zeros(resamples)
    for tissue in np.unique(labels):
        outcomes, counts = np.unique(values[labels == tissue], return_counts=True)
        totals += bootstrap_counts(counts[None], rng, resamples)[:, 0] @ outcomes
    low, high = percentile_interval(totals / len(values))
    return float(low), float(high)


def f1_scores(tables: np.ndarray) -> Any:
    """F1 of each tissue, float64 (..., n); 0 for one that is neither prompted nor predicted.

    Args:
        tables: numbers of images (..., n, m >= n) by prompted tissue and outcome. The first n outcomes are predictions of the
            tissues, any others are predictions of none of them.
    """
    n = tables.shape[-2]
    hits = np.diagonal(tables, axis1=-2, axis2=-1)
    return 2.0 * hits / np.maximum(tables.sum(axis=-1) + tables[..., :n].sum(axis=-2), 1)


def bootstrap_scores(y_true: np.ndarray, y_pred: np.ndarray, n_classes: int, seed: int) -> dict:
    """95 % percentile bootstrap intervals of the classification scores, see `bootstrap_counts`.

    Args:
        y_true: integers (N,) in [0, n_classes).
        y_pred: integers (N,) in [0, n_classes).
        n_classes: number of tissues; one without images counts as 0 in the macro averages.
        seed: non-negative seed of the resampling.

    Returns:
        {name}_low and {name}_high in [0, 1] for accuracy, macro_precision, macro_recall and macro_f1; f1_low and f1_high are
        lists with one number for each tissue.

    Raises:
        ValueError: no images, or labels outside [0, n_classes).
    """
    drawn = bootstrap_counts(confusion_matrix(y_true, y_pred, n_classes), np.random.default_rng(seed))
    hits = np.diagonal(drawn, axis1=1, axis2=2)
    predicted, prompted = drawn.sum(axis=1), drawn.sum(axis=2)
    f1 = f1_scores(drawn)
    scores = {
        "accuracy": hits.sum(axis=1) / prompted.sum(axis=1),
        "macro_precision": (hits / np.maximum(predicted, 1)).mean(axis=1),
        "macro_recall": (hits / np.maximum(prompted, 1)).mean(axis=1),
        "macro_f1": f1.mean(axis=1),
    }
    result: dict = {}
    for name, values in scores.items():
        low, high = percentile_interval(values)
        result |= {f"{name}_low": round_score(low), f"{name}_high": round_score(high)}
    low, high = percentile_interval(f1)
    return result | {"f1_low": [round_score(value) for value in low], "f1_high": [round_score(value) for value in high]}


def bootstrap_difference(y_true: np.ndarray, first: np.ndarray, second: np.ndarray, n_classes: int, seed: int) -> dict:
    """Difference of the macro F1 of two predictions of the same images, with its paired 95 % bootstrap interval.

    Args:
        y_true: integers (N,) in [0, n_classes).
        first: predictions, integers (N,) in [0, n_classes).
        second: predictions of the same images, integers (N,) in [0, n_classes).
        n_classes: number of tissues.
        seed: non-negative seed of the resampling.

    Returns:
        difference (first minus second), low and high in [-1, 1].

    Raises:
        ValueError: no images, unequal lengths, or labels outside [0, n_classes).
    """
    pairs = _count_pairs(y_true, first, second, n_classes)
    drawn = bootstrap_counts(pairs.reshape(n_classes, -1), np.random.default_rng(seed)).reshape(-1, *pairs.shape)
    low, high = percentile_interval(_difference(drawn))
    return {"difference": round_score(_difference(pairs)), "low": round_score(low), "high": round_score(high)}


class MeanInterval(NamedTuple):
    """Mean of independent repeats, their sample standard deviation, and the 95 % interval of the mean; see `mean_interval`."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Mean of independent repeats, such as trainings, with the 95 % interval of Student's t distribution.

    Args:
        values: one number per repeat, at least one.

    Returns:
        The mean, the sample standard deviation (n - 1), and the ends of the interval; the last three are None for one value.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if not n:
        raise ValueError("no values")
    values = [float(value) for value in values]
    # exact, so that equal values have an interval without width
    mean = statistics.mean(values)
    if n == 1:
        return MeanInterval(mean, None, None, None)
    sd = statistics.stdev(values)
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return MeanInterval(mean, sd, mean - half, mean + half)


def paired_t_test(differences: Sequence[float]) -> float:
    """p-value of a zero mean of paired differences: the paired t-test, as `scipy.stats.ttest_rel`.

    Args:
        differences: one number per pair, at least two, not all equal.

    Returns:
        p in [0, 1], two-sided.

    Raises:
        ValueError: fewer than two differences, or all equal.
    """
    mean, sd, _, _ = mean_interval(differences)
    if not sd:
        raise ValueError("the differences do not vary")
    n = len(differences)
    return float(2.0 * stdtr(n - 1, -abs(mean) / sd * math.sqrt(n)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for multiple tests (Holm, Scandinavian Journal of Statistics 1979).

    The i-th smallest of m is multiplied by m - i + 1, and raised to the adjusted value of the one before if that is larger. At
    level 0.05 the chance of any false positive in the family is at most 0.05, however the tests depend on each other.

    Args:
        p_values: m numbers in [0, 1].

    Returns:
        Adjusted p-values in [0, 1], in the given order.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [round_score(value) for value in adjusted]


def _macro_f1(matrices: np.ndarray) -> Any:
    return f1_scores(matrices).mean(axis=-1)


def _difference(pairs: np.ndarray) -> Any:
    """Macro F1 of the first minus that of the second prediction, of tables (..., n, n, n) as `_count_pairs` gives them."""
    return _macro_f1(pairs.sum(axis=-1)) - _macro_f1(pairs.sum(axis=-2))


def _count_pairs(y_true: np.ndarray, first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """Images (n, n, n) by true tissue, first and second prediction."""
    y_true, first, second = (
        check_labels(values, n, name) for values, name in ((y_true, "y_true"), (first, "first"), (second, "second"))
    )
    if not len(y_true) == len(first) == len(second):
        raise ValueError(f"y_true, first and second have {len(y_true)}, {len(first)} and {len(second)} labels")
    return np.bincount((y_true * n + first) * n + second, minlength=n**3).reshape(n, n, n)
