"""How well readers name tissues and tell synthetic images from real ones: arrays in, plain dict out.

A positive is "synthetic": sensitivity is the share of synthetic images that readers call synthetic, specificity the share of
real ones that they call real.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.readers.intervals import Weights, divide, estimate, mean_over_readers, share, weighted_share
from pathsynth.readers.readings import Readings

# Ratings from certainly real to certainly synthetic; 0 is no answer.
RATINGS = np.array([-5, -4, -3, -2, -1, 1, 2, 3, 4, 5])


def score_tissue_naming(readings: Readings, weights: Weights) -> dict[str, Any]:
    """Accuracy of naming the tissue, on real and on synthetic images, and their difference.

    Args:
        readings: first trials of a study.
        weights: resamples of its readers and images.

    Returns:
        real, synthetic and difference (real minus synthetic, paired by reader) as `intervals.estimate`, the same under
        per_tissue.{slug}, and confusion.{origin}: numbers of answers by true and named tissue.
    """
    return _compare_origins(readings, weights) | {
        "per_tissue": {
            slug: _compare_origins(readings.select(mask), weights.select(mask)) for slug, mask in shown_tissues(readings)
        },
        "confusion": {
            name: count_confusions(readings.select(readings.synthetic == origin))
            for name, origin in (("real", False), ("synthetic", True))
        },
    }


def shown_tissues(readings: Readings) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the slug of each tissue that has images, and which images show it, bool (N,)."""
    for number, slug in enumerate(readings.classes):
        if (mask := readings.y_true == number).any():
            yield slug, mask


def _compare_origins(readings: Readings, weights: Weights) -> dict[str, Any]:
    right, synthetic = readings.named_right, readings.synthetic
    masks = {"real": ~synthetic, "synthetic": synthetic}

    def difference(drawn: Weights) -> np.ndarray:
        real, made = (weighted_share(right[:, mask], drawn.select(mask)) for mask in masks.values())
        return real - made

    scores = {name: share(right[:, mask], weights.select(mask)) for name, mask in masks.items()}
    return scores | {"difference": estimate(difference, weights, int(readings.answered.sum()))}


def count_confusions(readings: Readings) -> list[list[int]]:
    """Numbers of answers by true (rows) and named tissue (columns)."""
    n = len(readings.classes)
    pairs = (readings.y_true * n + readings.tissue)[readings.answered]
    return np.bincount(pairs, minlength=n * n).reshape(n, n).tolist()


def score_origin(readings: Readings, weights: Weights) -> dict[str, Any]:
    """How well readers tell synthetic from real images.

    Args:
        readings, weights: as `score_tissue_naming`.

    Returns:
        synthetic_taken_for_real, real_taken_for_synthetic, sensitivity, specificity, d_prime and auc, as `intervals.estimate`
        gives them; d_prime and auc are means over readers. The first two also under per_tissue.{slug}.
    """
    answers = int(readings.answered.sum())
    synthetic = readings.synthetic
    called = readings.origin
    return {
        **_mistaken_shares(readings, weights),
        "sensitivity": share(called[:, synthetic], weights.select(synthetic)),
        "specificity": share(1.0 - called[:, ~synthetic], weights.select(~synthetic)),
        "d_prime": estimate(lambda drawn: mean_over_readers(d_primes(readings, drawn.images), drawn), weights, answers),
        "auc": estimate(lambda drawn: mean_over_readers(areas(readings, drawn.images), drawn), weights, answers),
        "per_tissue": {
            slug: _mistaken_shares(readings.select(mask), weights.select(mask)) for slug, mask in shown_tissues(readings)
        },
    }


def _mistaken_shares(readings: Readings, weights: Weights) -> dict[str, Any]:
    synthetic, called = readings.synthetic, readings.origin
    return {
        "synthetic_taken_for_real": share(1.0 - called[:, synthetic], weights.select(synthetic)),
        "real_taken_for_synthetic": share(called[:, ~synthetic], weights.select(~synthetic)),
    }


def d_primes(readings: Readings, images: np.ndarray) -> np.ndarray:
    """Sensitivity d' of each reader: z(hits) - z(false alarms), 0 for guessing (Green and Swets, 1966).

    Half an answer is added to hits and false alarms and one to their totals, without which a perfect reader has no finite d'
    (the log-linear correction: Hautus, Behavior Research Methods 1995).

    Args:
        readings: of R readers and N images.
        images: weights of the images, float (B, N).

    Returns:
        float64 (B, R), NaN for a reader without answers to either origin.
    """
    from scipy.special import ndtri

    rates = []
    for mask in (readings.synthetic, ~readings.synthetic):
        called, part = readings.origin[:, mask], images[:, mask]
        known = np.isfinite(called)
        total = part @ known.T.astype(float)
        rate = (part @ np.where(known, called, 0.0).T + 0.5) / (total + 1.0)
        rates.append(np.where(total > 0, rate, np.nan))
    hits, false_alarms = rates
    return ndtri(hits) - ndtri(false_alarms)


def areas(readings: Readings, images: np.ndarray) -> np.ndarray:
    """Area under each reader's ROC curve: how often a synthetic image gets a higher rating than a real one, ties counted half.

    The rating is the origin with its confidence, from certainly real to certainly synthetic (Hanley and McNeil, Radiology
    1982).

    Args:
        readings, images: as `d_primes`.

    Returns:
        float64 (B, R) in [0, 1], 0.5 for guessing, NaN as in `d_primes`.
    """
    levels = readings.rating[:, :, None] == RATINGS
    # (B, R, ratings): the weight of each rating among the synthetic and the real images
    made, real = (
        np.einsum("bn,rnl->brl", images[:, mask], levels[:, mask].astype(float), optimize=True)
        for mask in (readings.synthetic, ~readings.synthetic)
    )
    below = np.cumsum(real, axis=2) - real
    wins = (made * (below + 0.5 * real)).sum(axis=2)
    return divide(wins, made.sum(axis=2) * real.sum(axis=2))


def score_confidence(readings: Readings) -> list[dict[str, Any]]:
    """How often readers are right about the origin, by the confidence that they state."""
    right = readings.origin == readings.synthetic
    rows = []
    for level in range(1, 6):
        stated = np.abs(readings.rating) == level
        count = int(stated.sum())
        rows.append({"confidence": level, "n_answers": count, "right": round_score(right[stated].mean()) if count else None})
    return rows


def score_readers(readings: Readings) -> list[dict[str, Any]]:
    """Scores of each reader, shares with Wilson score intervals over images (JASA 1927; `scipy.stats.binomtest`).

    Returns:
        One dict per reader: name, n_answers, complete, tissue_real, tissue_synthetic, synthetic_taken_for_real,
        real_taken_for_synthetic (each with value, low, high, n_answers), d_prime, auc, and seconds (median).
    """
    synthetic, right = readings.synthetic, readings.named_right
    unit = np.ones((1, len(synthetic)))
    d_prime, auc = d_primes(readings, unit)[0], areas(readings, unit)[0]
    rows = []
    for row, name in enumerate(readings.names):
        called = readings.origin[row]
        answered = readings.answered[row]
        rows.append(
            {
                "name": name,
                "n_answers": int(answered.sum()),
                "complete": bool(answered.all()),
                "tissue_real": wilson_share(right[row, ~synthetic]),
                "tissue_synthetic": wilson_share(right[row, synthetic]),
                "synthetic_taken_for_real": wilson_share(1.0 - called[synthetic]),
                "real_taken_for_synthetic": wilson_share(called[~synthetic]),
                "d_prime": none_if_nan(d_prime[row]),
                "auc": none_if_nan(auc[row]),
                "seconds": none_if_nan(np.median(readings.seconds[row, answered])) if answered.any() else None,
            }
        )
    return rows


def wilson_share(values: np.ndarray) -> dict[str, Any]:
    """Share of answers (N,) that are 1, with Wilson's 95 % interval; NaN are no answers."""
    from scipy.stats import binomtest

    known = values[np.isfinite(values)]
    if not len(known):
        return {"value": None, "low": None, "high": None, "n_answers": 0}
    ends = binomtest(int(known.sum()), len(known)).proportion_ci(0.95, method="wilson")
    scores = {"value": known.mean(), "low": ends.low, "high": ends.high}
    return {name: round_score(value) for name, value in scores.items()} | {"n_answers": len(known)}


def score_times(readings: Readings) -> dict[str, Any]:
    """Quartiles of the seconds per image over all answers, by origin."""
    masks = {"all": np.ones(len(readings.synthetic), bool), "real": ~readings.synthetic, "synthetic": readings.synthetic}
    found = {}
    for name, mask in masks.items():
        seconds = readings.seconds[:, mask]
        known = seconds[np.isfinite(seconds)]
        quartiles = [round_score(value) for value in np.quantile(known, [0.25, 0.5, 0.75])] if len(known) else [None] * 3
        found[name] = dict(zip(("lower_quartile", "median", "upper_quartile"), quartiles, strict=True))
    return found


def none_if_nan(value: float) -> float | None:
    """A score for JSON, None where it is undefined."""
    return round_score(value) if np.isfinite(value) else None
