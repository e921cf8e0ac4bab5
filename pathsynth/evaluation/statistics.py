"""Scores: pure functions, arrays in, plain numbers out.

All averages over tissues are macro averages with `zero_division=0` over every tissue of the benchmark: a tissue that was never
asked for, or never seen, counts as 0 and is not left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pathsynth.classifiers.metrics import checked_labels, confusion_matrix, plain

PERMUTATIONS_AT_ONCE = 500

# Makes that many random pairs of confusion matrices (size, n, n).
Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]


def bootstrap_macro_f1(
    y_true: np.ndarray, y_pred: np.ndarray, n_classes: int, seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the macro F1, stratified by true tissue.

    The number of images per prompt is set by whoever generates and not by chance, so each tissue keeps its number. Drawing n
    images of a tissue with replacement is one multinomial draw from its row of the confusion matrix (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, chapters 8 and 13).

    Args:
        y_true: integers (N,) in [0, n_classes).
        y_pred: integers (N,) in [0, n_classes).
        n_classes: number of tissues; one without images counts as F1 = 0.
        seed: non-negative seed of the resampling.
        resamples: number of bootstrap sets, at least 1.
        level: coverage in (0, 1).

    Returns:
        Lower and upper bound in [0, 1].

    Raises:
        ValueError: for no images, labels outside [0, n_classes), or an impossible `resamples` or `level`.
    """
    drawn = _bootstrap_matrices(y_true, y_pred, n_classes, seed, resamples)
    low, high = _interval(_macro_f1(drawn), level)
    return plain(low), plain(high)


def bootstrap_scores(
    y_true: np.ndarray, y_pred: np.ndarray, n_classes: int, seed: int, resamples: int = 2000, level: float = 0.95
) -> dict:
    """Percentile bootstrap intervals of all scores of a set of images, from the same draws as `bootstrap_macro_f1`.

    Args:
        y_true: integers (N,) in [0, n_classes).
        y_pred: integers (N,) in [0, n_classes).
        n_classes: number of tissues; one without images counts as 0 in the macro averages.
        seed: non-negative seed of the resampling.
        resamples: number of bootstrap sets, at least 1.
        level: coverage in (0, 1).

    Returns:
        {name}_low and {name}_high in [0, 1] for accuracy, macro_precision, macro_recall and macro_f1; f1_low and f1_high are
        lists with one number for each tissue.

    Raises:
        ValueError: as `bootstrap_macro_f1`.
    """
    drawn = _bootstrap_matrices(y_true, y_pred, n_classes, seed, resamples)
    hits = np.diagonal(drawn, axis1=1, axis2=2)
    seen, asked = drawn.sum(axis=1), drawn.sum(axis=2)
    f1 = _f1(drawn)
    scores = {
        "accuracy": hits.sum(axis=1) / asked.sum(axis=1),
        "macro_precision": (hits / np.maximum(seen, 1)).mean(axis=1),
        "macro_recall": (hits / np.maximum(asked, 1)).mean(axis=1),
        "macro_f1": f1.mean(axis=1),
    }
    result: dict = {}
    for name, values in scores.items():
        low, high = _interval(values, level)
        result |= {f"{name}_low": plain(low), f"{name}_high": plain(high)}
    low, high = _interval(f1, level)
    return result | {"f1_low": [plain(value) for value in low], "f1_high": [plain(value) for value in high]}


def bootstrap_difference(
    y_true: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    n_classes: int,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict:
    """Difference of the macro F1 of two predictions of the same images, with its paired bootstrap interval.

    An image is drawn with both of its predictions, stratified by true tissue: one multinomial draw from the table of pairs of
    predictions of each tissue.

    Args:
        y_true: integers (N,) in [0, n_classes).
        first: predictions, integers (N,) in [0, n_classes).
        second: predictions of the same images, integers (N,) in [0, n_classes).
        n_classes: number of tissues.
        seed: non-negative seed of the resampling.
        resamples: number of bootstrap sets, at least 1.
        level: coverage in (0, 1).

    Returns:
        difference (first minus second), low and high in [-1, 1].

    Raises:
        ValueError: as `bootstrap_macro_f1`.
    """
    _check_positive(resamples, "resamples")
    pairs = _pair_counts(y_true, first, second, n_classes)
    rng = np.random.default_rng(seed)
    drawn = np.zeros((2, resamples, n_classes, n_classes), np.int64)
    for tissue, table in enumerate(pairs):
        if table.sum():
            cells = rng.multinomial(table.sum(), table.ravel() / table.sum(), size=resamples)
            cells = cells.reshape(resamples, n_classes, n_classes)
            drawn[0, :, tissue], drawn[1, :, tissue] = cells.sum(axis=2), cells.sum(axis=1)
    low, high = _interval(_macro_f1(drawn[0]) - _macro_f1(drawn[1]), level)
    difference = _macro_f1(pairs.sum(axis=2)) - _macro_f1(pairs.sum(axis=1))
    return {"difference": plain(difference), "low": plain(low), "high": plain(high)}


def paired_permutation_test(
    y_true: np.ndarray, first: np.ndarray, second: np.ndarray, n_classes: int, seed: int, permutations: int = 2000
) -> float:
    """p-value of no difference in macro F1 between two predictions that belong together image by image.

    Where there is no difference, the two predictions of a prompt and seed could as well be exchanged. Each pair is, or is not,
    at random; the p-value is the share of such tables, with the observed one among them, whose difference is no smaller (Good,
    Permutation Tests, 2nd ed. 2000, chapter 3; the one that is added: Phipson and Smyth, 2010). Images with the same truth and
    the same two predictions are exchanged by one binomial draw.

    Args:
        y_true: integers (N,) in [0, n_classes).
        first: predictions for one set of images, integers (N,) in [0, n_classes).
        second: predictions for the other set, or by another classifier, in the same order.
        n_classes: number of tissues.
        seed: non-negative seed of the permutations.
        permutations: number of random tables, at least 1.

    Returns:
        p in (0, 1], two-sided.

    Raises:
        ValueError: for no images, unequal lengths, labels outside [0, n_classes), or an impossible `permutations`.
    """
    _check_positive(permutations, "permutations")
    pairs = _pair_counts(y_true, first, second, n_classes)
    one, other = pairs.sum(axis=2), pairs.sum(axis=1)
    tissue, a, b = np.nonzero(pairs)
    counts = pairs[tissue, a, b]
    cells = np.arange(len(counts))
    # what exchanging one image of a cell takes from one place of the first table to another
    moves = np.zeros((len(counts), n_classes * n_classes), np.int64)
    np.add.at(moves, (cells, tissue * n_classes + a), -1)
    np.add.at(moves, (cells, tissue * n_classes + b), 1)
    rng = np.random.default_rng(seed)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        moved = (rng.binomial(counts, 0.5, size=(size, len(counts))) @ moves).reshape(size, n_classes, n_classes)
        return one + moved, other - moved

    return _permutation_p(one, other, draw, permutations)


def unpaired_permutation_test(
    y_true_a: np.ndarray,
    pred_a: np.ndarray,
    y_true_b: np.ndarray,
    pred_b: np.ndarray,
    n_classes: int,
    seed: int,
    permutations: int = 2000,
) -> float:
    """p-value of no difference in macro F1 between two sets of images that share neither prompts nor seeds.

    The images of each true tissue are dealt anew to two sets of the sizes that they have, by a multivariate hypergeometric draw
    of their predictions; else as `paired_permutation_test`.

    Args:
        y_true_a: integers (N,) in [0, n_classes).
        pred_a: integers (N,) in [0, n_classes).
        y_true_b: integers (M,) in [0, n_classes).
        pred_b: integers (M,) in [0, n_classes).
        n_classes: number of tissues.
        seed: non-negative seed of the permutations.
        permutations: number of random tables, at least 1.

    Returns:
        p in (0, 1], two-sided.

    Raises:
        ValueError: as `paired_permutation_test`.
    """
    _check_positive(permutations, "permutations")
    one, other = confusion_matrix(y_true_a, pred_a, n_classes), confusion_matrix(y_true_b, pred_b, n_classes)
    pooled, kept = one + other, one.sum(axis=1)
    rng = np.random.default_rng(seed)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        rows = [rng.multivariate_hypergeometric(pooled[t], kept[t], size, method="marginals") for t in range(n_classes)]
        first = np.stack(rows, axis=1)
        return first, pooled - first

    return _permutation_p(one, other, draw, permutations)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm, Scandinavian Journal of Statistics 1979).

    The i-th smallest of m counts m - i + 1 times, and none less than a smaller one; with those at most 0.05 called differences,
    one that is none is among them in at most 1 of 20 such families, however the tests depend on each other.

    Args:
        p_values: m numbers in [0, 1], unadjusted.

    Returns:
        Adjusted ones in [0, 1], in the order that was given.

    Raises:
        ValueError: for a number outside [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0.0) & (p <= 1.0)).all():
        raise ValueError(f"p_values: {p.tolist()}, expected numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [plain(value) for value in adjusted]


def difference_sentence(difference: float, p: float, n: int, names: tuple[str, str], level: float = 0.05) -> str:
    """Says in words whether one of two sets is better.

    Args:
        difference: macro F1 of the first minus that of the second, in [-1, 1].
        p: p-value of no difference.
        n: number of images of each set.
        names: of the first and of the second.
        level: largest p at which a difference is told.

    Returns:
        A sentence without a full stop.
    """
    numbers = f"(macro F1 {difference:+.3f}, p = {p:.2g})"
    if p > level or difference == 0.0:
        return f"no difference can be told at n = {n} {numbers}"
    better, worse = names if difference > 0.0 else names[::-1]
    return f"{better} is better than {worse} at n = {n} {numbers}"


def _f1(matrices: np.ndarray) -> np.ndarray:
    """F1 (..., n) of confusion matrices (..., n, n); a tissue neither asked for nor seen has F1 = 0."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    asked_and_seen = matrices.sum(axis=-1) + matrices.sum(axis=-2)
    return 2.0 * hits / np.maximum(asked_and_seen, 1)


def _macro_f1(matrices: np.ndarray) -> np.ndarray:
    return _f1(matrices).mean(axis=-1)


def _bootstrap_matrices(y_true: np.ndarray, y_pred: np.ndarray, n: int, seed: int, resamples: int) -> np.ndarray:
    """Confusion matrices, int64 (resamples, n, n), of sets drawn with replacement within each true tissue."""
    _check_positive(resamples, "resamples")
    matrix = confusion_matrix(y_true, y_pred, n)
    rng = np.random.default_rng(seed)
    drawn = np.zeros((resamples, n, n), np.int64)
    for tissue, row in enumerate(matrix):
        if row.sum():
            drawn[:, tissue] = rng.multinomial(row.sum(), row / row.sum(), size=resamples)
    return drawn


def _interval(values: np.ndarray, level: float) -> np.ndarray:
    """Lower and upper percentiles (2, ...) of values (resamples, ...)."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: {level} is not between 0 and 1")
    tail = (1.0 - level) / 2.0
    return np.quantile(values, [tail, 1.0 - tail], axis=0)


def _pair_counts(y_true: np.ndarray, first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """Images (n, n, n) by true tissue, first and second prediction."""
    y_true, first, second = (
        checked_labels(values, n, name) for values, name in ((y_true, "y_true"), (first, "first"), (second, "second"))
    )
    if not len(y_true) == len(first) == len(second):
        raise ValueError(f"y_true, first and second: {len(y_true)}, {len(first)} and {len(second)} labels, expected as many")
    return np.bincount((y_true * n + first) * n + second, minlength=n**3).reshape(n, n, n)


def _permutation_p(one: np.ndarray, other: np.ndarray, draw: Draw, permutations: int) -> float:
    """p-value of the difference of macro F1 between two tables among those between `draw`n ones."""
    # sums of the same fractions in another order differ in their last digits
    observed = abs(_macro_f1(one) - _macro_f1(other)) - 1e-12
    hits = 0
    for start in range(0, permutations, PERMUTATIONS_AT_ONCE):
        first, second = draw(min(PERMUTATIONS_AT_ONCE, permutations - start))
        hits += int((np.abs(_macro_f1(first) - _macro_f1(second)) >= observed).sum())
    return plain((1 + hits) / (1 + permutations))


def _check_positive(value: int, name: str) -> None:
    if value < 1:
        raise ValueError(f"{name}: {value} is less than 1")
