"""Checks of submitted scores: the same reference as the leaderboard's, and numbers that agree with each other.

They find other data, other classifiers and edited numbers. They cannot tell where the images come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.metric_files import get_nested
from pathsynth.evaluation.set_scores import score_predictions
from pathsynth.features.observe import OBSERVERS
from pathsynth.leaderboard.scores import Reference, ScoresFile
from pathsynth.report.pages import decimals, percent, significant

# Written scores are rounded to six digits, and so is their mean.
ROUNDING = 2e-6
# Another version of numpy may draw other samples: about six standard errors of an end of an interval of 2 000 samples.
INTERVAL_TOLERANCE = 0.01
LARGEST = 1e12
REMEDY = "Score the images again with the leaderboard's data and classifiers."
DIFFERENCES = {
    "scores_version": "another version of the scores",
    "benchmark": "another benchmark",
    "stand_in": "another data set",
    "classes": "other classes",
    "data": "another data set",
    "gate": "another gate",
    "judge": "another judge",
    "extractor": "another feature extractor",
    "dimensions": "another feature extractor",
    "seed": "another seeds.observers",
    "real_images": "observers of other accuracy on real images",
}


@dataclass(frozen=True)
class ScoreColumn:
    """A score of the leaderboard.

    Attributes:
        key: its name in a row.
        head: its column.
        keys: where it stands in the scores of a set.
        low, high: names of the ends of its interval beside it, or "".
        write: its format.
        share: whether it lies in [0, 1].
        required: whether every set has it.
    """

    key: str
    head: str
    keys: tuple[str, ...]
    low: str = ""
    high: str = ""
    write: Callable[[float | None], str] = decimals
    share: bool = True
    required: bool = False

    def read(self, scores: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
        """The score of a set and the ends of its interval; None for what it lacks."""
        ends = (get_nested(scores, (*self.keys[:-1], end)) if end else None for end in (self.low, self.high))
        return (get_nested(scores, self.keys), *ends)


RANKED = "judge_f1"
F1_INTERVAL = ("macro_f1_low", "macro_f1_high")
SHOWN = (
    ScoreColumn(RANKED, "Judge F1", ("judge", "macro_f1"), *F1_INTERVAL, required=True),
    ScoreColumn("open_set_f1", "Open-set F1", ("open_set", "macro_f1"), *F1_INTERVAL, required=True),
    ScoreColumn("gate_f1", "Gate F1", ("gate", "macro_f1"), *F1_INTERVAL, required=True),
    ScoreColumn("precision", "Precision", ("features", "precision"), "precision_low", "precision_high"),
    ScoreColumn("coverage", "Coverage", ("features", "coverage")),
    ScoreColumn(
        "structure_distance",
        "Structure distance",
        ("structure", "kernel_distance"),
        "kernel_low",
        "kernel_high",
        significant,
        share=False,
    ),
    ScoreColumn("copies", "Copies", ("copying", "pixels", "share"), "low", "high", percent),
)


def check_scores(path: Path, file: ScoresFile, reference: Reference) -> None:
    """Checks submitted scores.

    Args:
        path: scores.json, for errors.
        file: its contents.
        reference: the leaderboard's.

    Raises:
        DataError: the first disagreement.
    """
    for key, problem in DIFFERENCES.items():
        if getattr(file.reference, key) != getattr(reference, key):
            raise DataError(path, f"was scored with {problem} than this leaderboard's ({key} differs). {REMEDY}")
    _check_confusions(path, file, reference.classes)
    for by in OBSERVERS:
        _check_predictions(path, by, file, reference)
    for shown in SHOWN:
        _check_shown(path, shown, file.scores)
    _check_open_set(path, file, reference.classes)


def _check_confusions(path: Path, file: ScoresFile, classes: Sequence[str]) -> None:
    """Every observer has seen the images that the file counts."""
    images, n = file.images, len(classes)
    if list(images.per_class) != list(classes) or not 0 < images.distinct <= images.count:
        raise DataError(path, "images: counts are not those of a set of these classes")
    for by in OBSERVERS:
        matrix = file.confusion.get(by, [])
        if len(matrix) != n or any(len(row) != n for row in matrix):
            raise DataError(path, f"confusion.{by}: is not a matrix of {n} x {n} counts")
        if [sum(row) for row in matrix] != list(images.per_class.values()):
            raise DataError(path, f"confusion.{by}: its rows do not add up to images.per_class")
    if file.scores.get("n_images") != images.count:
        raise DataError(path, f"scores.n_images: is not {images.count}, the number of images")


def _check_predictions(path: Path, by: str, file: ScoresFile, reference: Reference) -> None:
    """Classification scores and their intervals are those of the confusion matrix."""
    matrix = np.array(file.confusion[by])
    y_true, y_pred = (np.repeat(index.ravel(), matrix.ravel()) for index in np.indices(matrix.shape))
    expected = score_predictions(y_true, y_pred, reference.classes, reference.seed)
    for keys, value in _leaves(expected):
        tolerance = INTERVAL_TOLERANCE if keys[-1].endswith(("_low", "_high")) else ROUNDING
        found = get_nested(file.scores, (by, *keys))
        if not _is_number(found) or abs(found - value) > tolerance:
            problem = f"{found!r:.40} does not follow from the confusion matrix, which gives {value:g}"
            raise DataError(path, f"scores.{'.'.join((by, *keys))}: {problem}")


def _check_shown(path: Path, shown: ScoreColumn, scores: Mapping[str, Any]) -> None:
    """A shown score is a number in its range, inside its interval."""
    name = f"scores.{'.'.join(shown.keys)}"
    values = shown.read(scores)
    value, low, high = values
    if value is None and not shown.required:
        return
    if any(each is not None and not _is_number(each) for each in values) or value is None:
        raise DataError(path, f"{name}: is missing or not a number")
    if shown.share and not all(0 <= each <= 1 for each in values if each is not None):
        raise DataError(path, f"{name}: {value:g} or its interval is not within 0 to 1")
    # small sets have no interval of some scores
    if shown.required and (low is None or high is None):
        raise DataError(path, f"{name}: has no interval")
    # that of gate and judge follows from the confusion matrix
    if low is not None and high is not None and shown.keys[0] not in OBSERVERS and not low <= value <= high:
        raise DataError(path, f"{name}: {value:g} is not within its interval, {low:g} to {high:g}")


def _check_open_set(path: Path, file: ScoresFile, classes: Sequence[str]) -> None:
    """The open-set F1 is the mean over classes, each no higher than the judge's hits that were not rejected allow."""
    rows = get_nested(file.scores, ("open_set", "per_tissue")) or {}
    values = [get_nested(rows, (slug, "f1")) for slug in classes]
    if not all(_is_number(value) and 0 <= value <= 1 for value in values):
        raise DataError(path, "scores.open_set.per_tissue: is not an F1 within 0 to 1 for each class")
    macro = file.scores["open_set"]["macro_f1"]
    if abs(math.fsum(values) / len(values) - macro) > ROUNDING:
        raise DataError(path, f"scores.open_set.macro_f1: {macro:g} is not the mean over classes")
    for place, (slug, f1) in enumerate(zip(classes, values, strict=True)):
        count, hits = file.images.per_class[slug], file.confusion["judge"][place][place]
        rejected = get_nested(rows, (slug, "rejected")) if count else 0.0
        if not _is_number(rejected) or not 0 <= rejected <= 1:
            raise DataError(path, f"scores.open_set.per_tissue.{slug}.rejected: is not a share within 0 to 1")
        most = min(hits, count - round(rejected * count))
        if f1 > (2 * most / (count + most) if most else 0.0) + ROUNDING:
            raise DataError(path, f"scores.open_set.per_tissue.{slug}.f1: {f1:g} is more than {most} hits of {count} give")


def _leaves(tree: Mapping[str, Any], keys: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], float]]:
    """All numbers of a nested dict with their keys."""
    found: list[tuple[tuple[str, ...], float]] = []
    for key, value in tree.items():
        found += _leaves(value, (*keys, key)) if isinstance(value, Mapping) else [((*keys, key), value)]
    return found


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that can be formatted: an integer may have thousands of digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
