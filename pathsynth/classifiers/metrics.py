"""Classification scores: pure functions, arrays in, plain numbers out.

All averages over tissues are macro averages with `zero_division=0` over every tissue of the benchmark: a tissue that was never
asked for, or never predicted, counts as 0 and is not left out.
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
        int64 (n, n); row: true (prompted) tissue, column: predicted tissue.

    Raises:
        ValueError: for no images, unequal lengths, or a label outside [0, n).
    """
    y_true, y_pred = checked_labels(y_true, n, "y_true"), checked_labels(y_pred, n, "y_pred")
    if len(y_true) != len(y_pred):
        raise ValueError(f"y_true and y_pred: {len(y_true)} and {len(y_pred)} labels, expected as many of one as of the other")
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
        ValueError: for no images, unequal lengths, or a label that is not an index into `slugs`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    matrix = confusion_matrix(y_true, y_pred, len(slugs))
    precision, recall, f1, _ = precision_recall_fscore_support(
        y_true, y_pred, labels=np.arange(len(slugs)), average=None, zero_division=0
    )
    return {
        "accuracy": plain(np.trace(matrix) / matrix.sum()),
        "macro_precision": plain(precision.mean()),
        "macro_recall": plain(recall.mean()),
        "macro_f1": plain(f1.mean()),
        "n_images": int(matrix.sum()),
        "per_tissue": {
            name: {"precision": plain(precision[i]), "recall": plain(recall[i]), "f1": plain(f1[i])}
            for i, name in enumerate(slugs)
        },
    }


def expected_calibration_error(probabilities: np.ndarray, y_true: np.ndarray, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of equal width (Guo et al., ICML 2017, equation 3).

    Args:
        probabilities: float (N, n), rows sum to 1; the confidence is the largest of a row.
        y_true: integers (N,) in [0, n).
        bins: number of bins of (0, 1]; a bin holds its upper edge.

    Returns:
        Error in [0, 1].

    Raises:
        ValueError: for no images, shapes that do not fit, or `bins` under 1.
    """
    if bins < 1:
        raise ValueError(f"bins: {bins} is less than 1")
    probabilities, y_true = _checked_probabilities(probabilities, y_true)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == y_true
    index = np.digitize(confidence, np.linspace(0.0, 1.0, bins + 1)[1:-1], right=True)
    # Count times |accuracy - mean confidence| is the absolute difference of the sums: no division by an empty bin.
    gap = np.bincount(index, correct, bins) - np.bincount(index, confidence, bins)
    return plain(np.abs(gap).sum() / len(y_true))


def classifier_scores(probabilities: np.ndarray, y_true: np.ndarray, slugs: Sequence[str]) -> dict:
    """Scores a classifier on real, labelled images.

    Args:
        probabilities: float (N, n), one column per slug, rows sum to 1.
        y_true: integers (N,), indices into `slugs`.
        slugs: names of all tissues.

    Returns:
        accuracy, macro_f1, auc, ece in [0, 1], n_images, and per_tissue.{slug}.{precision,recall,f1}. `auc` is the mean
        one-vs-rest area under the ROC curve over the tissues that have images: a tissue without images has no curve.

    Raises:
        ValueError: for no images, shapes that do not fit, or images of one tissue only (no ROC curve exists).
    """
    probabilities, y_true = _checked_probabilities(probabilities, y_true)
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


def _one_vs_rest_auc(probabilities: np.ndarray, y_true: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    present = np.unique(y_true)
    if len(present) < 2:
        raise ValueError(f"y_true: only tissue {present[0]} has images, the area under the ROC curve needs two or more tissues")
    return plain(np.mean([roc_auc_score(y_true == tissue, probabilities[:, tissue]) for tissue in present]))


def checked_labels(values: np.ndarray, n: int, name: str) -> np.ndarray:
    """Labels as int64 (N,).

    Raises:
        ValueError: for no images, or what is not integers (N,) in [0, n), with the `name` of the argument.
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


def _checked_probabilities(probabilities: np.ndarray, y_true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2:
        raise ValueError(f"probabilities: shape {probabilities.shape}, expected (N, tissues)")
    y_true = checked_labels(y_true, probabilities.shape[1], "y_true")
    if len(y_true) != len(probabilities):
        raise ValueError(f"probabilities and y_true: {len(probabilities)} rows and {len(y_true)} labels, expected as many")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities: some are not finite, expected numbers in [0, 1]")
    return probabilities, y_true


def plain(value: float) -> float:
    """A number as it is written: a Python float with DIGITS digits."""
    return round(float(value), DIGITS)
