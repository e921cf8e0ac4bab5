"""Agreement between readers, of readers with gate and judge, and of readers with themselves: arrays in, plain dict out."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.readers.accuracy import wilson_share
from pathsynth.readers.intervals import Weights, divide, draw_weights, expanded_interval, share, unit_weights
from pathsynth.readers.readings import NONE, OBSERVERS, Readings

ORIGINS = {"real": False, "synthetic": True}


def count_ratings(answers: np.ndarray, n_categories: int) -> np.ndarray:
    """Counts how many readers put each image into each category.

    Args:
        answers: integers (R, N) in [0, n_categories), or NONE.
        n_categories: number of categories.

    Returns:
        int64 (N, n_categories).
    """
    return (answers[:, :, None] == np.arange(n_categories)).sum(axis=0)


def fleiss_kappas(counts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Fleiss' kappa: agreement of readers beyond chance (Psychological Bulletin 1971).

    Images with fewer than two ratings say nothing about agreement and are left out. Others may have unequal numbers of
    ratings (Gwet, Handbook of Inter-Rater Reliability, 2014, section 2.3).

    Args:
        counts: ratings of N images in k categories, integers (N, k).
        images: weights of the images, float (B, N).

    Returns:
        float64 (B,) in [-1, 1], NaN where all ratings are of one category.
    """
    ratings = counts.sum(axis=1)
    rated = ratings >= 2
    counts, ratings, images = counts[rated], ratings[rated], images[:, rated]
    agreeing = divide((counts * (counts - 1.0)).sum(axis=1), ratings * (ratings - 1.0))
    observed = divide(images @ agreeing, images.sum(axis=1))
    by_category = images @ counts
    expected = (divide(by_category, by_category.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return divide(observed - expected, 1.0 - expected)


def score_fleiss(answers: np.ndarray, n_categories: int, weights: Weights) -> dict[str, Any]:
    """Fleiss' kappa of all readers, with an interval over images.

    Readers are not resampled: one who is drawn twice would agree fully with the copy.

    Args:
        answers: integers (R, N), NONE without an answer.
        n_categories: number of categories.
        weights: resamples of the N images.

    Returns:
        kappa, low, high and n_images (with two ratings or more); or `undefined` with the reason.
    """
    counts = count_ratings(answers, n_categories)
    n_images = int((counts.sum(axis=1) >= 2).sum())
    if not n_images:
        return {"undefined": "no image was seen by two readers"}
    kappa = fleiss_kappas(counts, unit_weights(1, len(counts)).images)[0]
    if not np.isfinite(kappa):
        return {"undefined": "all answers are the same"}
    ends = expanded_interval(fleiss_kappas(counts, weights.images), n_images)
    low, high = (None, None) if ends is None else map(round_score, ends)
    return {"kappa": round_score(kappa), "low": low, "high": high, "n_images": n_images}


def score_pair(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Agreement of two sets of answers to the same images.

    Kappa is Cohen's (Educational and Psychological Measurement 1960; `sklearn.metrics.cohen_kappa_score`).

    Args:
        first, second: integers (N,), NONE without an answer.

    Returns:
        n_images (with both answers), agreement in [0, 1], and kappa in [-1, 1]; `undefined` with the reason for what does not
        exist.
    """
    from sklearn.metrics import cohen_kappa_score

    both = (first != NONE) & (second != NONE)
    first, second = first[both], second[both]
    if not len(first):
        return {"n_images": 0, "undefined": "no images in common"}
    scores = {"n_images": len(first), "agreement": round_score((first == second).mean())}
    if len(np.unique([first, second])) == 1:
        return scores | {"undefined": "all answers are the same"}
    return scores | {"kappa": round_score(cohen_kappa_score(first, second))}


def score_agreement(readings: Readings, weights: Weights) -> dict[str, Any]:
    """Agreement between readers about tissue and origin.

    Args:
        readings: first trials of a study.
        weights: resamples of its readers and images.

    Returns:
        fleiss.{tissue,origin} as `score_fleiss`, and pairs: first, second, and tissue and origin as `score_pair`.
    """
    answers = {"tissue": (readings.tissue, len(readings.classes)), "origin": (called_origin(readings), 2)}
    return {
        "fleiss": {name: score_fleiss(found, count, weights) for name, (found, count) in answers.items()},
        "pairs": [
            {"first": readings.names[one], "second": readings.names[other]}
            | {name: score_pair(found[one], found[other]) for name, (found, _) in answers.items()}
            for one, other in combinations(range(len(readings.names)), 2)
        ],
    }


def called_origin(readings: Readings) -> np.ndarray:
    """Named origins as integers (R, N): 0 real, 1 synthetic, NONE without an answer."""
    return np.where(readings.answered, np.nan_to_num(readings.origin), NONE).astype(np.int64)


def score_observers(readings: Readings, weights: Weights) -> dict[str, Any]:
    """Compares the tissues that readers name with those that gate and judge predict for the same images.

    Args:
        readings, weights: as `score_agreement`.

    Returns:
        By observer that the key has predictions of, and by origin: agreement as `intervals.estimate`, kappa of all readers'
        answers against the predictions or `undefined`, and of the answers that differ how many have the reader, the observer
        or neither right.
    """
    return {
        observer: {
            name: _compare_observer(readings.select(mask), weights.select(mask), observer)
            for name, origin in ORIGINS.items()
            if (mask := (readings.synthetic == origin) & (readings.predicted[observer] != NONE)).any()
        }
        for observer in OBSERVERS
        if (readings.predicted[observer] != NONE).any()
    }


def _compare_observer(readings: Readings, weights: Weights, observer: str) -> dict[str, Any]:
    predicted = np.broadcast_to(readings.predicted[observer], readings.tissue.shape)
    answered = readings.answered
    differ = answered & (readings.tissue != predicted)
    reader_right, observer_right = readings.tissue == readings.y_true, predicted == readings.y_true
    pooled = score_pair(readings.tissue[answered], predicted[answered])
    return {
        "agreement": share(np.where(answered, readings.tissue == predicted, np.nan), weights),
        **{key: value for key, value in pooled.items() if key in ("kappa", "undefined")},
        "differ": int(differ.sum()),
        "reader_right": int((differ & reader_right).sum()),
        "observer_right": int((differ & observer_right).sum()),
        "neither_right": int((differ & ~reader_right & ~observer_right).sum()),
    }


def list_disputed(readings: Readings) -> list[dict[str, Any]]:
    """Lists images for which at least half of the answers name another tissue than the gate predicts, most disputed first."""
    rows = []
    for place, predicted in enumerate(readings.predicted["gate"]):
        named = readings.tissue[readings.answered[:, place], place]
        disputing = named[named != predicted]
        if predicted != NONE and len(named) and 2 * len(disputing) >= len(named):
            judge, most_named = readings.predicted["judge"][place], int(np.bincount(disputing).argmax())
            rows.append(
                {
                    "trial": readings.ids[place],
                    "tissue": readings.classes[readings.y_true[place]],
                    "origin": "synthetic" if readings.synthetic[place] else "real",
                    "gate": readings.classes[predicted],
                    "judge": None if judge == NONE else readings.classes[judge],
                    "named": readings.classes[most_named],
                    "n_named": int((named == most_named).sum()),
                    "n_differ": len(disputing),
                    "n_answers": len(named),
                }
            )
    return sorted(rows, key=lambda row: (-row["n_differ"] / row["n_answers"], -row["n_answers"], row["trial"]))


def score_repeats(readings: Readings, seed: int) -> dict[str, Any] | None:
    """How often readers answer the same when they see an image a second time, or None for a study without repeats.

    Args:
        readings: all trials of a study, repeats among them.
        seed: non-negative seed of the resampling.

    Returns:
        tissue and origin (as `intervals.share`, over all answered pairs), confidence_difference (mean absolute), and readers:
        the same for each, with its name, and shares as `wilson_share`.
    """
    second = np.flatnonzero(readings.repeats != NONE)
    if not len(second):
        return None
    first = readings.repeats[second]
    both = readings.answered[:, first] & readings.answered[:, second]
    same = {
        "tissue": np.where(both, readings.tissue[:, first] == readings.tissue[:, second], np.nan),
        "origin": np.where(both, readings.origin[:, first] == readings.origin[:, second], np.nan),
    }
    change = np.abs(np.abs(readings.rating[:, first]) - np.abs(readings.rating[:, second]))

    # repeats are drawn from all images, not within tissue and origin
    weights = draw_weights(len(readings.names), np.zeros(len(second), np.int64), seed)
    return {
        **{name: share(values, weights) for name, values in same.items()},
        "confidence_difference": _mean_known(change),
        "readers": [
            {"name": name}
            | {what: wilson_share(values[row]) for what, values in same.items()}
            | {"confidence_difference": _mean_known(change[row])}
            for row, name in enumerate(readings.names)
        ],
    }


def _mean_known(values: np.ndarray) -> float | None:
    """Mean of the values that are not NaN, None if all are."""
    known = values[np.isfinite(values)]
    return round_score(known.mean()) if len(known) else None
