"""What a classifier's confidence is worth, and what refusing images costs and gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.classifiers.metrics import checked_labels, plain

if TYPE_CHECKING:
    import pandas as pd


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> list[dict]:
    """Accuracy beside confidence in bins of equal width (Guo et al., ICML 2017, section 2).

    Args:
        confidence: float (N,) in [0, 1].
        correct: bool (N,).
        bins: number of bins of (0, 1]; a bin holds its upper edge, as in `scores.expected_calibration_error`.

    Returns:
        One row for each bin that has images: low, high, n, confidence and accuracy (means).

    Raises:
        ValueError: for unequal lengths, a confidence outside [0, 1], or `bins` under 1.
    """
    if bins < 1:
        raise ValueError(f"bins: {bins} is less than 1")
    confidence, correct = _checked_confidence(confidence), np.asarray(correct, bool)
    if correct.shape != confidence.shape:
        raise ValueError(f"confidence and correct: shapes {confidence.shape} and {correct.shape}, expected the same")
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.digitize(confidence, edges[1:-1], right=True)
    rows = []
    for number in np.unique(index):
        here = index == number
        rows.append(
            {
                "low": plain(edges[number]),
                "high": plain(edges[number + 1]),
                "n": int(here.sum()),
                "confidence": plain(confidence[here].mean()),
                "accuracy": plain(correct[here].mean()),
            }
        )
    return rows


def threshold_curve(
    y_true: np.ndarray,
    gate_pred: np.ndarray,
    gate_confidence: np.ndarray,
    judge_pred: np.ndarray,
    slugs: Sequence[str],
    thresholds: Sequence[float],
) -> list[dict]:
    """What a gate would keep that also asks for a confidence, from one attempt per image.

    An image is kept if the gate sees the prompted tissue with at least the threshold's confidence.

    Args:
        y_true: prompted tissues, integers (N,), indices into `slugs`.
        gate_pred: the gate's predictions, integers (N,).
        gate_confidence: the gate's confidence in them, float (N,) in [0, 1].
        judge_pred: the judge's predictions, integers (N,).
        slugs: names of all tissues.
        thresholds: confidences.

    Returns:
        One row for each threshold: threshold, kept_share (of all images), judge_accuracy (share of kept images in which the
        judge too sees the prompted tissue, None where nothing is kept), expected_attempts (attempts that one kept image takes:
        images over kept images, mean over the tissues that have images, from their first attempts only, None where one keeps
        nothing), n_kept, and tissues_lost (that keep nothing).

    Raises:
        ValueError: for no images, unequal lengths, labels outside `slugs`, or a confidence outside [0, 1].
    """
    n = len(slugs)
    y_true = checked_labels(y_true, n, "y_true")
    gate_pred, judge_pred = checked_labels(gate_pred, n, "gate_pred"), checked_labels(judge_pred, n, "judge_pred")
    gate_confidence = _checked_confidence(gate_confidence)
    if not len(y_true) == len(gate_pred) == len(gate_confidence) == len(judge_pred):
        raise ValueError("y_true, gate_pred, gate_confidence and judge_pred: unequal lengths, expected as many of each")
    asked = np.bincount(y_true, minlength=n)
    rows: list[dict] = []
    for threshold in thresholds:
        kept = (gate_pred == y_true) & (gate_confidence >= threshold)
        accepted = np.bincount(y_true[kept], minlength=n)[asked > 0]
        lost = int((accepted == 0).sum())
        rows.append(
            {
                "threshold": plain(threshold),
                "kept_share": plain(kept.mean()),
                "judge_accuracy": plain((judge_pred == y_true)[kept].mean()) if kept.any() else None,
                "expected_attempts": None if lost else plain((asked[asked > 0] / accepted).mean()),
                "n_kept": int(kept.sum()),
                "tissues_lost": lost,
            }
        )
    return rows


def filled_curve(attempts: pd.DataFrame, images_per_tissue: int, max_attempts: int) -> list[dict]:
    """Share of wanted images that are there after so many attempts.

    Args:
        attempts: one row per attempt with the columns tissue, slot, attempt (from 0) and accepted (0 or 1).
        images_per_tissue: wanted images of each tissue, at least 1.
        max_attempts: most attempts per image, at least 1.

    Returns:
        Rows tissue, attempt (1 to `max_attempts`) and filled in [0, 1], by tissue in the table's order; `all` comes last.

    Raises:
        ValueError: for an empty table, or numbers under 1.
    """
    if images_per_tissue < 1 or max_attempts < 1:
        raise ValueError(f"images_per_tissue and max_attempts: {images_per_tissue} and {max_attempts}, expected at least 1")
    if attempts.empty:
        raise ValueError("attempts: no rows, expected at least 1")
    counts = {}
    for tissue, own in attempts.groupby("tissue", sort=False):
        first = own[own["accepted"].astype(bool)].groupby("slot")["attempt"].min().to_numpy(np.int64)
        counts[tissue] = [int((first < number).sum()) for number in range(1, max_attempts + 1)]
    shares = {tissue: np.array(filled) / images_per_tissue for tissue, filled in counts.items()}
    shares["all"] = np.mean(list(shares.values()), axis=0)
    return [
        {"tissue": tissue, "attempt": number, "filled": plain(share)}
        for tissue, filled in shares.items()
        for number, share in enumerate(filled, 1)
    ]


def _checked_confidence(confidence: np.ndarray) -> np.ndarray:
    confidence = np.asarray(confidence, np.float64)
    if confidence.ndim != 1 or not ((confidence >= 0.0) & (confidence <= 1.0)).all():
        raise ValueError(f"confidence: shape {confidence.shape}, expected numbers in [0, 1] of shape (N,)")
    return confidence
