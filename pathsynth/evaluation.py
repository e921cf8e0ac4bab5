"""The evaluation of generated images: which sets are scored, by which classifier, and the tables that show it.

The headline is the paper's measure: prompt against the gate's label on raw images, the first attempt of every wanted image.
The gate's score of what it let through is 100 % by construction, so the accepted images are scored by the judge alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pathsynth import files
from pathsynth.errors import DataError
from pathsynth.generated import GeneratedSets, LabelledImages
from pathsynth.scores import bootstrap_macro_f1, classification_scores, confusion_matrix

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("precision", "recall", "f1")


class SupportsProbabilities(Protocol):
    """A classifier of tissue images."""

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Gives float32 (N, tissues), rows sum to 1, for uint8 (N, H, W, 3)."""


@dataclass(frozen=True)
class ScoredSet:
    """One set of images as one classifier saw it.

    Attributes:
        name: "raw", "accepted" or "untuned".
        seen_by: who looked, "gate" or "judge".
        y_true: prompted tissue, integers (N,).
        y_pred: predicted tissue, integers (N,).
        scores: dict of `score_set`.
    """

    name: str
    seen_by: str
    y_true: np.ndarray
    y_pred: np.ndarray
    scores: dict


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known of a generated set: the four scored sets, and the names of the tissues."""

    slugs: tuple[str, ...]
    raw_by_gate: ScoredSet
    raw_by_judge: ScoredSet
    accepted_by_judge: ScoredSet
    untuned_by_judge: ScoredSet

    @property
    def metrics(self) -> dict:
        """The dict of metrics/evaluation.json: raw images by the gate at top level, the other sets as objects."""
        return {
            **self.raw_by_gate.scores,
            "judge": self.raw_by_judge.scores,
            "filtered_judge": self.accepted_by_judge.scores,
            "untuned": self.untuned_by_judge.scores,
        }

    def confusion_counts(self, seen_by: str) -> np.ndarray:
        """Counts of raw images as "gate" or "judge" saw them, int64 (n, n); row: prompted, column: predicted tissue."""
        scored = self._raw_by(seen_by)
        return confusion_matrix(scored.y_true, scored.y_pred, len(self.slugs))

    def confusion(self, seen_by: str) -> pd.DataFrame:
        """One row per raw image with the slugs `actual` (prompted) and `predicted`, for `dvc plots` of kind confusion."""
        import pandas as pd

        scored = self._raw_by(seen_by)
        slugs = np.array(self.slugs)
        return pd.DataFrame({"actual": slugs[scored.y_true], "predicted": slugs[scored.y_pred]})

    def _raw_by(self, seen_by: str) -> ScoredSet:
        return {"gate": self.raw_by_gate, "judge": self.raw_by_judge}[seen_by]

    def per_tissue(self) -> pd.DataFrame:
        """One row per tissue; columns such as `raw_judge_f1` for every set and score, empty for a set without images."""
        import pandas as pd

        sets = (self.raw_by_gate, self.raw_by_judge, self.accepted_by_judge, self.untuned_by_judge)
        none = dict.fromkeys(SCORES)
        rows = [
            {"tissue": slug}
            | {
                f"{scored.name}_{scored.seen_by}_{score}": scored.scores.get("per_tissue", {}).get(slug, none)[score]
                for scored in sets
                for score in SCORES
            }
            for slug in self.slugs
        ]
        return pd.DataFrame(rows)


def score_set(y_true: np.ndarray, y_pred: np.ndarray, slugs: Sequence[str], seed: int, resamples: int) -> dict:
    """Scores of one set with the 95 % bootstrap interval of its macro F1.

    Args:
        y_true: prompted tissue, integers (N,), indices into `slugs`.
        y_pred: predicted tissue, integers (N,), indices into `slugs`.
        slugs: names of all tissues.
        seed: seed of the bootstrap.
        resamples: number of bootstrap sets.

    Returns:
        macro_f1, macro_precision, macro_recall, accuracy, macro_f1_low, macro_f1_high, n_images and per_tissue. Of a set
        without images only `n_images`, 0: it has no score.

    Raises:
        ValueError: for labels that are no indices into `slugs`, or unequal lengths.
    """
    if len(y_true) == 0 and len(y_pred) == 0:
        return {"n_images": 0}
    scores = classification_scores(y_true, y_pred, slugs)
    low, high = bootstrap_macro_f1(y_true, y_pred, len(slugs), seed, resamples)
    averages = {name: scores[name] for name in ("macro_f1", "macro_precision", "macro_recall", "accuracy")}
    interval = {"macro_f1_low": low, "macro_f1_high": high}
    return {**averages, **interval, "n_images": scores["n_images"], "per_tissue": scores["per_tissue"]}


def evaluate(
    sets: GeneratedSets,
    *,
    gate: SupportsProbabilities,
    judge: SupportsProbabilities,
    slugs: Sequence[str],
    seed: int,
    resamples: int,
) -> Evaluation:
    """Scores raw images by gate and judge, accepted and untuned images by the judge.

    Args:
        sets: the generated images.
        gate, judge: the classifier that filtered, and the one that took no part in it.
        slugs: names of all tissues, in the order of the classifiers' columns.
        seed: seed of the bootstrap.
        resamples: number of bootstrap sets.

    Raises:
        DataError: when there are no raw images, or prompts or classifiers that do not fit the tissues.
    """
    if len(sets.raw.images) == 0:
        raise DataError("raw images", "none, expected the first attempt of every wanted image")

    def look(name: str, seen_by: str, images: LabelledImages, classifier: SupportsProbabilities) -> ScoredSet:
        y_true, y_pred = _seen(name, seen_by, images, classifier, len(slugs))
        return ScoredSet(name, seen_by, y_true, y_pred, score_set(y_true, y_pred, slugs, seed, resamples))

    return Evaluation(
        slugs=tuple(slugs),
        raw_by_gate=look("raw", "gate", sets.raw, gate),
        raw_by_judge=look("raw", "judge", sets.raw, judge),
        accepted_by_judge=look("accepted", "judge", sets.accepted, judge),
        untuned_by_judge=look("untuned", "judge", sets.untuned, judge),
    )


def write_tables(folder: Path, evaluation: Evaluation) -> None:
    """Writes confusion_gate.csv, confusion_judge.csv and per_tissue.csv into `folder`.

    Raises:
        DataError: when a file cannot be written.
    """
    for seen_by in ("gate", "judge"):
        files.write_csv(folder / f"confusion_{seen_by}.csv", evaluation.confusion(seen_by))
    files.write_csv(folder / "per_tissue.csv", evaluation.per_tissue())


def _seen(
    name: str, seen_by: str, images: LabelledImages, classifier: SupportsProbabilities, tissues: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompted and predicted tissues of a set, both int64 (N,)."""
    y_true = np.asarray(images.labels, np.int64)
    if len(y_true) == 0:
        return y_true, y_true
    if y_true.max() >= tissues:
        raise DataError(f"{name} images", f"label {y_true.max()} is not one of 0 to {tissues - 1}")
    probabilities = classifier.probabilities(images.images)
    if probabilities.shape[1] != tissues:
        raise DataError(seen_by, f"knows {probabilities.shape[1]} tissues, expected {tissues}; train it on this data set")
    return y_true, probabilities.argmax(axis=1)
