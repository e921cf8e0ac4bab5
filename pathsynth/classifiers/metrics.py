"""Classification scores: pure functions of labels, predictions and probabilities.

Macro averages run over every tissue of the benchmark with `zero_division=0`: a tissue without images or without predictions
counts as 0 instead of being left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIGITS = 6


def confusion_matrix(y_true: np.ndarray, y_pred: np.ndarray, n: int) -> np.ndarray:
    """Counts images by true and predicted tissue.

    Args:
        y_true: integers (N,) in [0, n).
        y_pred: integers (N,) in [0, n).
        n: number of tissues.

    Returns:
        int64 (n, n); rows are true (prompted) tissues, columns predicted ones.

    Raises:
        ValueError: no images, unequal lengths, or a label outside [0, n).
    """
    y_true, y_pred = check_labels(y_true, n, "y_true"), check_labels(y_pred, n, "y_pred")
    if len(y_true) != len(y_pred):
        raise ValueError(f"y_true and y_pred: {len(y_true)} and {len(y_pred)} labels, expected the same number")
    return np.bincount(y_true * n + y_pred, minlength=n * n).reshape(n, n)


def classification_scores(y_true: np.ndarray, y_pred: np.ndarray, slugs: Sequence[str]) -> dict:
    """Scores predicted against true tissues (`sklearn.metrics.precision_recall_fscore_support`, `zero_division=0`).

    Args:
        y_true: integers (N,), indices into `slugs`; for generated images the prompted tissue.
        y_pred: integers (N,), indices into `slugs`.
        slugs: names of all tissues; one without images counts in the macro averages.

    Returns:
        accuracy, macro_precision, macro_recall, macro_f1 in [0, 1], n_images, and per_tissue.{slug}.{precision,recall,f1}.

    Raises:
        ValueError: no images, unequal lengths, or a label that is not an index into `slugs`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    matrix = confusion_matrix(y_true, y_pred, len(slugs))
    precision, recall, f1, _ = precision_recall_fscore_support(
        y_true, y_pred, labels=np.arange(len(slugs)), average=None, zero_division=0
    )
    return {
        "accuracy": round_score(np.trace(matrix) / matrix.sum()),
        "macro_precision": round_score(precision.mean()),
        "macro_recall": round_score(recall.mean()),
        "macro_f1": round_score(f1.mean()),
        "n_images": int(matrix.sum()),
        "per_tissue": {
            name: {"precision": round_score(precision[i]), "recall": round_score(recall[i]), "f1": round_score(f1[i])}
            for i, name in enumerate(slugs)
        },
    }


def expected_calibration_error(probabilities: np.ndarray, y_true: np.ndarray, bins: int = 15) -> float:
    """Mean absolute difference between confidence and accuracy over bins of equal width (Guo et al., ICML 2017, equation 3).

    Args:
        probabilities: float (N, n), rows sum to 1; the confidence is the largest of a row.
        y_true: integers (N,) in [0, n).
        bins: number of bins of (0, 1], each including its upper edge.

    Returns:
        Error in [0, 1].

    Raises:
        ValueError: no images, shapes that do not match, or `bins` below 1.
    """
    if bins < 1:
        raise ValueError(f"bins: {bins} is less than 1")
    probabilities, y_true = _check_probabilities(probabilities, y_true)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == y_true
    index = np.digitize(confidence, np.linspace(0.0, 1.0, bins + 1)[1:-1], right=True)
    # n_bin * |accuracy - mean confidence| is the difference of two sums, which needs no division by an empty bin
    gap = np.bincount(index, correct, bins) - np.bincount(index, confidence, bins)
    return round_score(np.abs(gap).sum() / len(y_true))


def classifier_scores(probabilities: np.ndarray, y_true: np.ndarray, slugs: Sequence[str]) -> dict:
    """Scores a classifier on real, labelled images.

    Args:
        probabilities: float (N, n), one column per slug, rows sum to 1.
        y_true: integers (N,), indices into `slugs`.
        slugs: names of all tissues.

    Returns:
        accuracy, macro_f1, auc, ece in [0, 1], n_images, and per_tissue.{slug}.{precision,recall,f1}. `auc` is the mean
        one-vs-rest area under the ROC curve over the tissues that have images.

    Raises:
        ValueError: no images, shapes that do not match, or images of a single tissue (no ROC curve exists).
    """
    probabilities, y_true = _check_probabilities(probabilities, y_true)
    if probabilities.shape[1] != len(slugs):
        raise ValueError(f"probabilities: {probabilities.shape[1]} columns, expected one for each of {len(slugs)} tissues")
    scores = classification_scores(y_true, probabilities.argmax(axis=1), slugs)
    return {
        "accuracy": scores["accuracy"],
        "macro_f1": scores["macro_f1"],
        "auc": _one_vs_rest_auc(probabilities, y_true),
        "ece": expected_calibration_error(probabilities, y_true),
        "n_images": scores["n_images"],
        "per_tissue": scores["per_tissue"],
    }


def check_labels(values: np.ndarray, n: int, name: str) -> np.ndarray:
    """Validates labels and converts them to int64 (N,).

    Args:
        values: integers (N,) in [0, n).
        n: number of tissues.
        name: of the argument, for the error.

    Raises:
        ValueError: anything else.
    """
    values = np.asarray(values)
    if values.size == 0:
        raise ValueError(f"{name}: no images, expected at least 1")
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name}: {values.dtype} of shape {values.shape}, expected integers of shape (N,)")
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() >= n:
        raise ValueError(f"{name}: labels {values.min()} to {values.max()}, expected 0 to {n - 1}")
    return values


def round_score(value: float) -> float:
    """Rounds a score to the DIGITS digits that are written to JSON, as a Python float."""
    return round(float(value), DIGITS)


def _check_probabilities(probabilities: np.ndarray, y_true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Validates float64 (N, n) with one label for each row."""
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or len(probabilities) != len(y_true):
        raise ValueError(f"probabilities: shape {probabilities.shape} for {len(y_true)} labels, expected (N, tissues)")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities: contain NaN or infinity, expected numbers in [0, 1]")
    return probabilities, check_labels(y_true, probabilities.shape[1], "y_true")


def _one_vs_rest_auc(probabilities: np.ndarray, y_true: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    present = np.unique(y_true)
    if len(present) < 2:
        raise ValueError(f"y_true: only tissue {present[0]} has images, but a ROC curve needs two or more tissues")
    return round_score(np.mean([roc_auc_score(y_true == tissue, probabilities[:, tissue]) for tissue in present]))
