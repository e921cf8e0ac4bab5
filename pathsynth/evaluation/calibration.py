"""Calibration of a classifier's confidence, and the costs and benefits of rejecting images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.classifiers.metrics import round_score

if TYPE_CHECKING:
    import pandas as pd


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> list[dict]:
    """Reliability diagram: accuracy and confidence in bins of equal width (Guo et al., ICML 2017, section 2).

    Args:
        confidence: float (N,) in [0, 1].
        correct: bool (N,).
        bins: number of bins of (0, 1]; a bin includes its upper edge, as in `expected_calibration_error`.

    Returns:
        One row for each bin that has images: low, high, n, confidence and accuracy (means).
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.digitize(confidence, edges[1:-1], right=True)
    rows = []
    for number in np.unique(index):
        in_bin = index == number
        rows.append(
            {
                "low": round_score(edges[number]),
                "high": round_score(edges[number + 1]),
                "n": int(in_bin.sum()),
                "confidence": round_score(confidence[in_bin].mean()),
                "accuracy": round_score(correct[in_bin].mean()),
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
    """Effect of a threshold on the gate's confidence, from one attempt per image.

    An image is kept if the gate predicts the prompted tissue with at least the threshold's confidence.

    Args:
        y_true: prompted tissues, integers (N,), indices into `slugs`.
        gate_pred: the gate's predictions, integers (N,).
        gate_confidence: the gate's confidence in them, float (N,) in [0, 1].
        judge_pred: the judge's predictions, integers (N,).
        slugs: names of all tissues.
        thresholds: confidences.

    Returns:
        One row for each threshold: threshold, kept_share (of all images), judge_accuracy (share of kept images in which the
        judge predicts the prompted tissue too, None where nothing is kept), expected_attempts (attempts per kept image: images
        over kept images, mean over the tissues that have images, None where one of them keeps nothing), n_kept, and
        tissues_lost (those that keep nothing).
    """
    n = len(slugs)
    prompted = np.bincount(y_true, minlength=n)
    rows: list[dict] = []
    for threshold in thresholds:
        kept = (gate_pred == y_true) & (gate_confidence >= threshold)
        accepted = np.bincount(y_true[kept], minlength=n)[prompted > 0]
        lost = int((accepted == 0).sum())
        rows.append(
            {
                "threshold": round_score(threshold),
                "kept_share": round_score(kept.mean()),
                "judge_accuracy": round_score((judge_pred == y_true)[kept].mean()) if kept.any() else None,
                "expected_attempts": None if lost else round_score((prompted[prompted > 0] / accepted).mean()),
                "n_kept": int(kept.sum()),
                "tissues_lost": lost,
            }
        )
    return rows


def filled_curve(attempts: pd.DataFrame, images_per_tissue: int, max_attempts: int) -> list[dict]:
    """Computes the share of requested images that are filled after each attempt.

    Args:
        attempts: at least one row, one per attempt, with the columns tissue, slot, attempt (from 0) and accepted (0 or 1).
        images_per_tissue: requested images of each tissue, at least 1.
        max_attempts: maximum attempts per image, at least 1.

    Returns:
        Rows tissue, attempt (1 to `max_attempts`) and filled in [0, 1], by tissue in the table's order, then `all`.
    """
    counts = {}
    for tissue, own in attempts.groupby("tissue", sort=False):
        first = own[own["accepted"].astype(bool)].groupby("slot")["attempt"].min().to_numpy(np.int64)
        counts[tissue] = [int((first < number).sum()) for number in range(1, max_attempts + 1)]
    shares = {tissue: np.array(filled) / images_per_tissue for tissue, filled in counts.items()}
    shares["all"] = np.mean(list(shares.values()), axis=0)
    return [
        {"tissue": tissue, "attempt": number, "filled": round_score(share)}
        for tissue, filled in shares.items()
        for number, share in enumerate(filled, 1)
    ]
