"""All results of a study or of a page of preferences, as one plain dict that JSON can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.evaluation.statistics import RESAMPLES
from pathsynth.readers.accuracy import score_confidence, score_origin, score_readers, score_times, score_tissue_naming
from pathsynth.readers.agreement import list_disputed, score_agreement, score_observers, score_repeats
from pathsynth.readers.answers import Answers, Collection, Key, PreferenceKey, StudyKey
from pathsynth.readers.intervals import draw_weights
from pathsynth.readers.ranking import (
    Preferences,
    collect_preferences,
    draw_preference_weights,
    score_choices,
    score_ranking,
    select_trials,
)
from pathsynth.readers.readings import NONE, collect_readings

OVER_BOTH = "over readers and images"
OVER_IMAGES = "over images only, because there is one reader: they do not cover other readers"


def evaluate_answers(key: Key, collection: Collection, seed: int = 0) -> dict[str, Any]:
    """Evaluates the answers to a study or to a page of preferences.

    Args:
        key: of the study.
        collection: the answers of its readers.
        seed: non-negative seed of the resampling.

    Returns:
        kind, study, created_with, stand_in, classes, seed, resamples, interval (what the intervals cover), notes, counts, and
        the scores of the kind: see `_score_study` and `_score_preferences`.
    """
    readers = collection.readers
    head = {
        "kind": key.kind,
        "study": key.study,
        "created_with": key.created_with,
        "stand_in": key.stand_in,
        "classes": list(key.classes),
        "seed": seed,
        "resamples": RESAMPLES,
        "interval": OVER_IMAGES if len(readers) == 1 else OVER_BOTH,
        "notes": [*collection.notes, *_note_incomplete(key, readers)],
    }
    return head | (_score_study(key, readers, seed) if isinstance(key, StudyKey) else _score_preferences(key, readers, seed))


def _note_incomplete(key: Key, readers: Sequence[Answers]) -> list[str]:
    missing = [len(key.trials) - len(reader.answers) for reader in readers]
    incomplete = sum(count > 0 for count in missing)
    if not incomplete:
        return []
    return [f"{incomplete} of {len(readers)} readers left {sum(missing)} trials unanswered; the answers given are used."]


def _score_study(key: StudyKey, readers: Sequence[Any], seed: int) -> dict[str, Any]:
    """Counts; tissue_naming, origin, confidence, readers, agreement, observers, disputed, repeats and seconds."""
    everything = collect_readings(key, readers)
    readings = everything.select(everything.repeats == NONE)
    weights = draw_weights(len(readers), readings.strata, seed)
    synthetic = int(readings.synthetic.sum())
    return {
        "counts": {
            "readers": len(readers),
            "complete": int(everything.answered.all(axis=1).sum()),
            "images": len(readings.ids),
            "real": len(readings.ids) - synthetic,
            "synthetic": synthetic,
            "repeats": len(everything.ids) - len(readings.ids),
            "answers": int(readings.answered.sum()),
        },
        "tissue_naming": score_tissue_naming(readings, weights),
        "origin": score_origin(readings, weights),
        "confidence": score_confidence(readings),
        "readers": score_readers(readings),
        "agreement": score_agreement(readings, weights),
        "observers": score_observers(readings, weights),
        "disputed": list_disputed(readings),
        "repeats": score_repeats(everything, seed),
        "seconds": score_times(readings),
    }


def _score_preferences(key: PreferenceKey, readers: Sequence[Any], seed: int) -> dict[str, Any]:
    """Counts; ranking, per_tissue.{slug} the same, choices, questions, and seconds (the median)."""
    preferences = collect_preferences(key, readers)
    weights = draw_preference_weights(preferences, seed)
    known = preferences.seconds[np.isfinite(preferences.seconds)]
    return {
        "counts": {
            "readers": len(readers),
            "complete": int(np.isfinite(preferences.score).all(axis=1).sum()),
            "trials": len(key.trials),
            "clusters": len(np.unique(preferences.cluster)),
            "configurations": len(preferences.configurations),
            "answers": int(np.isfinite(preferences.score).sum()),
        },
        "configurations": list(preferences.configurations),
        "questions": list(dict.fromkeys(trial.question for trial in key.trials if trial.question)),
        "ranking": score_ranking(preferences, weights),
        "per_tissue": {
            slug: _rank_tissue(preferences, weights, number)
            for number, slug in enumerate(key.classes)
            if (preferences.tissue == number).any()
        },
        "choices": score_choices(preferences, weights),
        "seconds": round_score(np.median(known)),
    }


def _rank_tissue(preferences: Preferences, weights: Any, number: int) -> dict[str, Any]:
    mask = preferences.tissue == number
    if not np.isfinite(preferences.score[:, mask]).any():
        return {"undefined": "no answers"}
    return score_ranking(select_trials(preferences, mask), weights.select(mask))
