"""The scores of a generated set: which images are scored, and by which classifier.

The paper's measure is prompt against the gate's label on raw images, the first attempt at every requested image. The gate's
score of what it accepted is 100 % by construction; read the judge's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.classifiers.metrics import expected_calibration_error, round_score
from pathsynth.core.errors import DataError
from pathsynth.data.generated import GeneratedSets
from pathsynth.data.sampling import proportional_counts, subsample_per_class
from pathsynth.evaluation import tables
from pathsynth.evaluation.agreement import disputed_share, error_agreement, filter_gain
from pathsynth.evaluation.calibration import filled_curve
from pathsynth.evaluation.copying import Pairs
from pathsynth.evaluation.fidelity import NEAREST_NEIGHBOURS
from pathsynth.evaluation.set_scores import SetScorer
from pathsynth.evaluation.statistics import bootstrap_difference
from pathsynth.features.observe import COPIES, OBSERVERS, Observed

if TYPE_CHECKING:
    import pandas as pd

# Real images that are scored like generated ones; test is of another centre for PathMNIST and phantoms.
REAL_SETS = ("val", "test")


@dataclass(frozen=True)
class Evaluation:
    """Scores and tables of a generated set.

    Attributes:
        metrics: the dict of metrics/evaluation.json.
        tables: the tables of plots/evaluation by name.
        pairs: the accepted images closest to training images, by the space of the distance, "pixels" or "structure".
    """

    metrics: dict
    tables: Mapping[str, pd.DataFrame]
    pairs: Mapping[str, Pairs]


def evaluate(
    sets: GeneratedSets,
    observed: Mapping[str, Observed],
    scorer: SetScorer,
    *,
    extractor: str,
    images_per_tissue: int,
    max_attempts: int,
) -> Evaluation:
    """Computes all scores and tables of a generated set.

    Args:
        sets: the generated images and the table of attempts.
        observed: observations of the generated sets by name, at least "raw" and "accepted".
        scorer: scores any set against the real images.
        extractor: name of the feature extractor.
        images_per_tissue: number of requested images of each tissue.
        max_attempts: limit of attempts per image.

    Raises:
        DataError: there are no raw images.
    """
    raw, accepted, real, slugs = observed["raw"], observed["accepted"], scorer.real, scorer.slugs
    if len(raw.labels) == 0:
        raise DataError("raw images", "none, expected the first attempt at every requested image")
    wanted = np.bincount(raw.labels, minlength=len(slugs))
    compared = {**observed, **{split: select_like(real[split], wanted, scorer.seed) for split in REAL_SETS}}
    results = {name: scorer.score(each) for name, each in compared.items()}
    scored, pairs = {name: scores for name, (scores, _) in results.items()}, results["accepted"][1]
    metrics = {
        "extractor": extractor,
        "nearest_neighbours": NEAREST_NEIGHBOURS,
        "sets": scored,
        "copying_control": scorer.compare_copies(real[COPIES])[0],
        "observers": _compare_observers(sets, raw, accepted, real["test"], slugs, scorer.seed),
        "real_images": score_accuracies(real),
        "calibration": {"gate": {split: {"ece": _gate_calibration_error(real[split])} for split in REAL_SETS}},
    }
    frames = {
        **{name: tables.images_table(observed[name], sets.slots(name), slugs) for name in ("raw", "accepted")},
        "per_tissue": tables.per_tissue_table(scored, slugs),
        "thresholds": tables.thresholds_table(raw, slugs),
        "reliability": tables.reliability_table({"test": real["test"], "raw": raw}),
        "pairs": tables.pairs_table(pairs, accepted, sets.slots("accepted"), real["train"], slugs),
    }
    if sets.attempts is not None:
        filled = filled_curve(sets.attempts, images_per_tissue, max_attempts)
        frames["filled"] = tables.filled_table(filled)
        metrics["cost"] = _cost(sets.attempts, filled, images_per_tissue, slugs)
    return Evaluation(metrics, frames, pairs)


def select_like(observed: Observed, wanted: np.ndarray, seed: int) -> Observed:
    """Draws at most `wanted` images of each tissue, integers (tissues,), in the same proportions."""
    available = np.bincount(observed.labels, minlength=len(wanted))
    return observed.select(subsample_per_class(observed.labels, proportional_counts(available, wanted, max_factor=1.0), seed))


def _compare_observers(
    sets: GeneratedSets, raw: Observed, accepted: Observed, test: Observed, slugs: Sequence[str], seed: int
) -> dict:
    """Agreement of gate and judge, their difference, and what filtering gains by the judge."""
    by_gate, by_judge = raw.predicted("gate"), raw.predicted("judge")
    gain: dict = {"undefined": "rejected images were not regenerated"}
    if sets.attempts is not None:
        position = {key: i for i, key in enumerate(zip(raw.labels.tolist(), sets.slots("raw").tolist(), strict=True))}
        slots = zip(accepted.labels.tolist(), sets.slots("accepted").tolist(), strict=True)
        first = np.array([position[key] for key in slots], np.int64)
        right = accepted.predicted("judge") == accepted.labels
        gain = filter_gain((by_judge == raw.labels)[first], right, accepted.labels, seed)
    return {
        "real_test": error_agreement(test.labels, test.predicted("gate"), test.predicted("judge")),
        "raw": error_agreement(raw.labels, by_gate, by_judge),
        "gate_minus_judge": bootstrap_difference(raw.labels, by_gate, by_judge, len(slugs), seed),
        "filter_gain": gain,
        "disputed": disputed_share(accepted.labels, accepted.predicted("judge")),
    }


def score_accuracies(real: Mapping[str, Observed]) -> dict:
    """Accuracy of each observer on held-out real images."""

    def accuracy(observed: Observed, observer: str) -> float:
        return round_score((observed.predicted(observer) == observed.labels).mean())

    return {observer: {split: accuracy(real[split], observer) for split in ("val", "test")} for observer in OBSERVERS}


def _gate_calibration_error(observed: Observed) -> float:
    return expected_calibration_error(observed.probabilities["gate"], observed.labels)


def _cost(attempts: pd.DataFrame, filled: list[dict], requested: int, slugs: Sequence[str]) -> dict:
    """Attempts per accepted image and its inverse, number of missing images, and the share filled after each attempt."""

    def count(rows: pd.DataFrame, requested: int) -> dict:
        accepted = int(rows["accepted"].sum())
        counts = {
            "acceptance_rate": round_score(accepted / len(rows)) if len(rows) else 0.0,
            "shortfall": requested - accepted,
        }
        if not accepted:
            return {**counts, "undefined": {"attempts_per_accepted": "no image was accepted"}}
        return {"attempts_per_accepted": round_score(len(rows) / accepted), **counts}

    after = {str(row["attempt"]): row["filled"] for row in filled if row["tissue"] == "all"}
    per_tissue = {slug: count(attempts[attempts["tissue"] == slug], requested) for slug in slugs}
    return {**count(attempts, requested * len(slugs)), "filled_after": after, "per_tissue": per_tissue}
