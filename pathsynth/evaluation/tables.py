"""The tables of plots/evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.classifiers.metrics import round_score
from pathsynth.core.io import write_csv
from pathsynth.core.metric_files import get_nested
from pathsynth.evaluation.calibration import reliability, threshold_curve
from pathsynth.evaluation.copying import Pairs
from pathsynth.features.observe import OBSERVERS, Observed

if TYPE_CHECKING:
    import pandas as pd

# Columns of the table per tissue: prefix, set and observer.
SCORED = (
    ("raw_gate", "raw", "gate"),
    ("raw_judge", "raw", "judge"),
    ("raw_colour", "raw", "colour"),
    ("accepted_judge", "accepted", "judge"),
    ("accepted_colour", "accepted", "colour"),
    ("untuned_judge", "untuned", "judge"),
    ("paraphrased_judge", "paraphrased", "judge"),
)
SCORES = ("precision", "recall", "f1", "f1_low", "f1_high")
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Writes NAME.csv for every table into `folder`.

    Raises:
        DataError: a file cannot be written.
    """
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)


def images_table(observed: Observed, slots: np.ndarray, slugs: Sequence[str]) -> pd.DataFrame:
    """One row per image: prompted tissue, slot, and the tissue that each observer predicts."""
    import pandas as pd

    names = np.array(slugs)
    predicted = {observer: names[observed.predicted(observer)] for observer in OBSERVERS}
    return pd.DataFrame({"tissue": names[observed.labels], "slot": slots, **predicted})


def per_tissue_table(scored: Mapping[str, dict], slugs: Sequence[str]) -> pd.DataFrame:
    """One row per tissue; columns such as `raw_judge_f1` for every set and score, empty for a set without images.

    Args:
        scored: scores by set, see `SetScorer.score`.
        slugs: names of all tissues.
    """
    rows = [
        {"tissue": slug}
        | {
            f"{prefix}_{score}": get_nested(scored, (name, by, "per_tissue", slug, score))
            for prefix, name, by in SCORED
            for score in SCORES
        }
        for slug in slugs
    ]
    return _frame(rows, tuple(rows[0]))


def thresholds_table(raw: Observed, slugs: Sequence[str]) -> pd.DataFrame:
    """The gate's `threshold_curve` on raw images."""
    gate, judge = raw.predicted("gate"), raw.predicted("judge")
    rows = threshold_curve(raw.labels, gate, raw.confidence("gate"), judge, slugs, THRESHOLDS)
    return _frame(rows, tuple(rows[0]))


def reliability_table(sets: Mapping[str, Observed]) -> pd.DataFrame:
    """The gate's confidence and accuracy: of real images against their labels, of generated ones against their prompts."""
    rows = [
        {"set": name, **row}
        for name, observed in sets.items()
        for row in reliability(observed.confidence("gate"), observed.predicted("gate") == observed.labels)
    ]
    return _frame(rows, ("set", "low", "high", "n", "confidence", "accuracy"))


def filled_table(filled: list[dict]) -> pd.DataFrame:
    """The rows of `filled_curve`."""
    return _frame(filled, ("tissue", "attempt", "filled"))


def pairs_table(
    pairs: Mapping[str, Pairs], accepted: Observed, slots: np.ndarray, train: Observed, slugs: Sequence[str]
) -> pd.DataFrame:
    """One row per pair of an accepted and a training image, by space and rank."""
    rows = [
        {
            "space": space,
            "rank": rank,
            "tissue": slugs[accepted.labels[image]],
            "slot": int(slots[image]),
            "distance": round_score(distance),
            "train_index": int(near),
            "train_tissue": slugs[train.labels[near]],
        }
        for space, found in pairs.items()
        for rank, (image, near, distance) in enumerate(zip(found.images, found.nearest, found.distances, strict=True), start=1)
    ]
    return _frame(rows, ("space", "rank", "tissue", "slot", "distance", "train_index", "train_tissue"))


def _frame(rows: list[dict], columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=list(columns))
