"""Agreement of gate and judge, and what filtering gains by the judge's eye."""

from __future__ import annotations

from typing import Any

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.evaluation.copying import binomial_interval
from pathsynth.evaluation.statistics import bootstrap_mean


def error_agreement(y_true: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Compares the errors of two classifiers with those of independent ones.

    Two classifiers that were trained on the same images tend to err on the same ones, so the second confirms the first less
    than its accuracy suggests. Kappa is Cohen's (Educational and Psychological Measurement 1960), of right against wrong.

    Args:
        y_true: true or prompted tissue, integers (N,), N >= 1.
        first, second: predicted tissues, integers (N,).

    Returns:
        n_images, both_wrong, expected_both_wrong (of independent classifiers with these error rates), same_wrong_class (of
        `both_wrong`, how often both predict the same tissue), and kappa in [-1, 1], or `undefined.kappa` with the reason.
    """
    from sklearn.metrics import cohen_kappa_score

    wrong, also_wrong = first != y_true, second != y_true
    both = wrong & also_wrong
    scores: dict[str, Any] = {
        "n_images": len(y_true),
        "both_wrong": int(both.sum()),
        "expected_both_wrong": round_score(wrong.mean() * also_wrong.mean() * len(y_true)),
        "same_wrong_class": int((both & (first == second)).sum()),
    }
    if not wrong.any() or not also_wrong.any():
        return scores | {"undefined": {"kappa": "one of the classifiers makes no error"}}
    if wrong.all() or also_wrong.all():
        return scores | {"undefined": {"kappa": "one of the classifiers is never right"}}
    return scores | {"kappa": round_score(cohen_kappa_score(wrong, also_wrong))}


def filter_gain(before: np.ndarray, after: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """Accuracy gained by regenerating rejected images, paired by slot, with its 95 % bootstrap interval.

    Args:
        before: whether the judge recognizes the first image of each filled slot, bool (N,).
        after: whether it recognizes the accepted image of the same slot, bool (N,).
        labels: prompted tissues, integers (N,), the strata of the bootstrap.
        seed: non-negative seed.

    Returns:
        difference, low and high in [-1, 1], and n_images; or `undefined` with the reason.
    """
    if not len(labels):
        return {"undefined": "no image was accepted"}
    gain = after.astype(np.float64) - before
    low, high = bootstrap_mean(gain, labels, np.random.default_rng(seed))
    values = {"difference": gain.mean(), "low": low, "high": high}
    return {name: round_score(value) for name, value in values.items()} | {"n_images": len(labels)}


def disputed_share(labels: np.ndarray, judged: np.ndarray) -> dict[str, Any]:
    """Share of accepted images in which the judge sees another tissue, with its exact 95 % interval.

    Args:
        labels: prompted tissues, which the gate recognized, integers (N,).
        judged: tissues that the judge predicts, integers (N,).

    Returns:
        n_images and n_disputed, and share, low and high in [0, 1] unless there are no images.
    """
    disputed = int((labels != judged).sum())
    counts = {"n_images": len(labels), "n_disputed": disputed}
    if not len(labels):
        return counts
    low, high = binomial_interval(disputed, len(labels))
    return counts | {"share": round_score(disputed / len(labels)), "low": round_score(low), "high": round_score(high)}
