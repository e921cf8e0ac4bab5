"""The evaluation of generated images: which sets are scored, by which classifier, and the tables that show it.

The headline is the paper's measure: prompt against the gate's label on raw images, the first attempt of every wanted image.
The gate's score of what it let through is 100 % by construction, so the accepted images are scored by the judge alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pathsynth import files
from pathsynth.errors import DataError
from pathsynth.plates import Block, draw_overview, draw_plate
from pathsynth.scores import bootstrap_macro_f1, classification_scores, confusion_matrix

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

SCORES = ("precision", "recall", "f1")
ATTEMPT_COLUMNS = ("tissue", "slot", "attempt", "seed", "predicted", "confidence", "accepted")
PLATE_IMAGES = 18
OVERVIEW_IMAGES = 4


class SupportsProbabilities(Protocol):
    """A classifier of tissue images."""

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Gives float32 (N, tissues), rows sum to 1, for uint8 (N, H, W, 3)."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and the tissue of each: the prompted one for generated images.

    Attributes:
        images: uint8 (N, H, W, 3), RGB.
        labels: integers (N,).
    """

    images: np.ndarray
    labels: np.ndarray

    def of(self, tissue: int, most: int) -> np.ndarray:
        """The first images of a tissue, at most `most` of them: never picked by looks."""
        return self.images[np.flatnonzero(self.labels == tissue)[:most]]


@dataclass(frozen=True)
class ScoredSet:
    """One set of images as one classifier saw it.

    Attributes:
        name: "raw", "accepted" or "untuned".
        judge_of: who looked, "gate" or "judge".
        y_true: prompted tissue, integers (N,).
        y_pred: predicted tissue, integers (N,).
        scores: dict of `score_set`.
    """

    name: str
    judge_of: str
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

    def confusion_counts(self, judge_of: str) -> np.ndarray:
        """Counts of raw images as "gate" or "judge" saw them, int64 (n, n); row: prompted, column: predicted tissue."""
        scored = self._raw_by(judge_of)
        return confusion_matrix(scored.y_true, scored.y_pred, len(self.slugs))

    def confusion(self, judge_of: str) -> pd.DataFrame:
        """One row per raw image with the slugs `actual` (prompted) and `predicted`, for `dvc plots` of kind confusion."""
        import pandas as pd

        scored = self._raw_by(judge_of)
        slugs = np.array(self.slugs)
        return pd.DataFrame({"actual": slugs[scored.y_true], "predicted": slugs[scored.y_pred]})

    def _raw_by(self, judge_of: str) -> ScoredSet:
        return {"gate": self.raw_by_gate, "judge": self.raw_by_judge}[judge_of]

    def per_tissue(self) -> pd.DataFrame:
        """One row per set, classifier and tissue with precision, recall and f1; a set without images has no rows."""
        import pandas as pd

        sets = (self.raw_by_gate, self.raw_by_judge, self.accepted_by_judge, self.untuned_by_judge)
        rows = [
            {"set": scored.name, "judge_of": scored.judge_of, "tissue": tissue, **{name: row[name] for name in SCORES}}
            for scored in sets
            for tissue, row in scored.scores.get("per_tissue", {}).items()
        ]
        return pd.DataFrame(rows, columns=["set", "judge_of", "tissue", *SCORES])


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
    *,
    raw: LabelledImages,
    accepted: LabelledImages,
    untuned: LabelledImages,
    gate: SupportsProbabilities,
    judge: SupportsProbabilities,
    slugs: Sequence[str],
    seed: int,
    resamples: int,
) -> Evaluation:
    """Scores raw images by gate and judge, accepted and untuned images by the judge.

    Args:
        raw: the first attempt of every wanted image.
        accepted: the images that the gate let through; may be empty.
        untuned: one attempt of every wanted image from the base model without LoRA.
        gate, judge: the classifier that filtered, and the one that took no part in it.
        slugs: names of all tissues, in the order of the classifiers' columns.
        seed: seed of the bootstrap.
        resamples: number of bootstrap sets.

    Raises:
        DataError: when there are no raw images, or prompts or classifiers that do not fit the tissues.
    """
    if len(raw.images) == 0:
        raise DataError("raw images", "none, expected the first attempt of every wanted image")

    def look(name: str, judge_of: str, images: LabelledImages, classifier: SupportsProbabilities) -> ScoredSet:
        y_true, y_pred = _seen(name, judge_of, images, classifier, len(slugs))
        return ScoredSet(name, judge_of, y_true, y_pred, score_set(y_true, y_pred, slugs, seed, resamples))

    return Evaluation(
        slugs=tuple(slugs),
        raw_by_gate=look("raw", "gate", raw, gate),
        raw_by_judge=look("raw", "judge", raw, judge),
        accepted_by_judge=look("accepted", "judge", accepted, judge),
        untuned_by_judge=look("untuned", "judge", untuned, judge),
    )


def read_attempts(path: Path) -> pd.DataFrame:
    """Reads the table of attempts of a generated set.

    Raises:
        DataError: when the file is missing, is no such table or lacks a column.
    """
    import pandas as pd

    try:
        attempts = pd.read_csv(path)
    except OSError as error:
        raise DataError(path, f"could not be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(path, f"is not a table: {' '.join(str(error).split())}") from error
    missing = [name for name in ATTEMPT_COLUMNS if name not in attempts]
    if missing:
        raise DataError(path, f"has no column {', '.join(missing)}; expected {', '.join(ATTEMPT_COLUMNS)}")
    return attempts


def refused_first_attempts(
    attempts: pd.DataFrame, raw: LabelledImages, slugs: Sequence[str]
) -> list[tuple[np.ndarray, list[str]]]:
    """The raw images that the gate refused, and what it took them for.

    Args:
        attempts: the table of attempts; its rows with `attempt` 0 are those of `raw`, in the same order.
        raw: the first attempt of every wanted image.
        slugs: names of all tissues.

    Returns:
        For each tissue: images uint8 (N, H, W, 3) and N slugs, in the order of the slots.

    Raises:
        DataError: when the table and the images do not belong together.
    """
    first = attempts[attempts["attempt"] == 0]
    prompted = np.array(slugs)[raw.labels] if len(raw.labels) else np.array([])
    unknown = set(first["predicted"]) - set(slugs)
    if unknown:
        raise DataError("attempts.csv", f"predicted: {', '.join(map(str, unknown))} is not one of {', '.join(slugs)}")
    if len(first) != len(raw.labels) or (first["tissue"].to_numpy() != prompted).any():
        raise DataError(
            "attempts.csv", f"its first attempts are not those of the {len(raw.labels)} raw images; generate both anew"
        )
    refused = first["accepted"].to_numpy() == 0
    seen = first["predicted"].to_numpy()
    return [
        (raw.images[refused & (raw.labels == tissue)], seen[refused & (raw.labels == tissue)].tolist())
        for tissue in range(len(slugs))
    ]


def draw_plates(
    *,
    labels: Sequence[str],
    slugs: Sequence[str],
    real: LabelledImages,
    raw: LabelledImages,
    accepted: LabelledImages,
    refused: Sequence[tuple[np.ndarray, list[str]]],
    caption: str,
) -> dict[str, Image.Image]:
    """Draws a plate per tissue (data set, raw, accepted, rejected) and one overview of all tissues.

    Args:
        labels: the tissues in words.
        slugs: the tissues' slugs, in the same order; the keys of the result, besides `overview`.
        real: labelled images of the benchmark's data set, best of a split that the generator did not learn from.
        raw: the first attempt of every wanted image.
        accepted: the images that the gate let through.
        refused: of `refused_first_attempts`.
        caption: one line under every plate, such as what the data stand for.
    """
    words = dict(zip(slugs, labels, strict=True))
    plates, rows = {}, []
    for tissue, (slug, label) in enumerate(words.items()):
        blocks = [
            Block("data set", real.of(tissue, PLATE_IMAGES)),
            Block("raw (first attempts)", raw.of(tissue, PLATE_IMAGES)),
            Block("accepted by the gate", accepted.of(tissue, PLATE_IMAGES)),
        ]
        images, seen = refused[tissue]
        notes = tuple(words[name] for name in seen[:PLATE_IMAGES])
        plates[slug] = draw_plate(label, [*blocks, Block("rejected, taken for", images[:PLATE_IMAGES], notes)], caption)
        rows.append((label, [Block(block.title, block.images[:OVERVIEW_IMAGES]) for block in blocks]))
    return {**plates, "overview": draw_overview(rows, caption, OVERVIEW_IMAGES)}


def write_plots(folder: Path, evaluation: Evaluation, plates: Mapping[str, Image.Image]) -> None:
    """Writes confusion_gate.csv, confusion_judge.csv, per_tissue.csv and plates/{name}.png into `folder`.

    Raises:
        DataError: when a file cannot be written.
    """
    (folder / "plates").mkdir(parents=True, exist_ok=True)
    for judge_of in ("gate", "judge"):
        files.write_csv(folder / f"confusion_{judge_of}.csv", evaluation.confusion(judge_of))
    files.write_csv(folder / "per_tissue.csv", evaluation.per_tissue())
    for name, plate in plates.items():
        with files.write_whole(folder / "plates" / f"{name}.png") as path:
            plate.save(path, format="PNG", optimize=True)


def _seen(
    name: str, judge_of: str, images: LabelledImages, classifier: SupportsProbabilities, tissues: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompted and predicted tissues of a set, both int64 (N,)."""
    y_true = np.asarray(images.labels, np.int64)
    if len(y_true) == 0:
        return y_true, y_true
    if y_true.max() >= tissues:
        raise DataError(f"{name} images", f"label {y_true.max()} is not one of 0 to {tissues - 1}")
    probabilities = classifier.probabilities(images.images)
    if probabilities.shape[1] != tissues:
        raise DataError(judge_of, f"knows {probabilities.shape[1]} tissues, expected {tissues}; train it on this data set")
    return y_true, probabilities.argmax(axis=1)
