"""The scores of a generated set: which images are scored, and by which classifier.

The headline is the paper's measure: prompt against the gate's label on raw images, the first attempt at every requested image.
Accepted images are scored by judge and colour control, because the gate's score of what it accepted is 100 % by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth.classifiers.metrics import classification_scores, expected_calibration_error, round_score
from pathsynth.core.errors import DataError
from pathsynth.data.generated import GeneratedSets
from pathsynth.data.sampling import proportional_counts, subsample_per_class
from pathsynth.evaluation import tables
from pathsynth.evaluation.calibration import filled_curve
from pathsynth.evaluation.copying import Pairs, closest_pairs, copying_scores, find_nearest
from pathsynth.evaluation.fidelity import NEAREST_NEIGHBOURS, RealFeatures, fidelity_scores
from pathsynth.evaluation.settings import FidelitySettings
from pathsynth.evaluation.statistics import bootstrap_difference, bootstrap_scores
from pathsynth.features.observe import OBSERVERS, Observed

if TYPE_CHECKING:
    import pandas as pd

AVERAGES = ("macro_f1", "macro_precision", "macro_recall", "accuracy")
# (set, observer) of each score and its key in evaluation.json; the headline is at the top level of the file.
HEADLINE = ("raw", "gate")
KEYS = {
    HEADLINE: None,
    ("raw", "judge"): "judge",
    ("raw", "colour"): "colour",
    ("accepted", "judge"): "filtered_judge",
    ("accepted", "colour"): "filtered_colour",
    ("untuned", "judge"): "untuned",
}
CLOSEST_PAIRS = 6


@dataclass(frozen=True)
class Evaluation:
    """Scores and tables of a generated set.

    Attributes:
        metrics: the dict of metrics/evaluation.json.
        tables: the tables of plots/evaluation by name.
        pairs: the accepted images closest to training images, by the space of the distance, "features" or "pixels".
    """

    metrics: dict
    tables: Mapping[str, pd.DataFrame]
    pairs: Mapping[str, Pairs]


def score_set(y_true: np.ndarray, y_pred: np.ndarray, slugs: Sequence[str], seed: int) -> dict:
    """Classification scores of one set with their 95 % bootstrap intervals.

    Args:
        y_true: prompted tissue, integers (N,), indices into `slugs`.
        y_pred: predicted tissue, integers (N,), indices into `slugs`.
        slugs: names of all tissues.
        seed: seed of the bootstrap.

    Returns:
        macro_f1, macro_precision, macro_recall and accuracy, each with {name}_low and {name}_high, n_images, and
        per_tissue.{slug}.{precision,recall,f1,f1_low,f1_high}. A set without images has only `n_images`, 0.
    """
    if len(y_true) == 0:
        return {"n_images": 0}
    scores = classification_scores(y_true, y_pred, slugs)
    ends = bootstrap_scores(y_true, y_pred, len(slugs), seed)
    averages = {name: scores[name] for name in AVERAGES}
    intervals = {f"{name}_{end}": ends[f"{name}_{end}"] for name in AVERAGES for end in ("low", "high")}
    per_tissue = {
        slug: {**scores["per_tissue"][slug], "f1_low": ends["f1_low"][i], "f1_high": ends["f1_high"][i]}
        for i, slug in enumerate(slugs)
    }
    return {**averages, **intervals, "n_images": scores["n_images"], "per_tissue": per_tissue}


def evaluate(
    sets: GeneratedSets,
    observed: Mapping[str, Observed],
    real: Mapping[str, Observed],
    *,
    slugs: Sequence[str],
    extractor: str,
    fidelity: FidelitySettings,
    images_per_tissue: int,
    max_attempts: int,
    seed: int,
) -> Evaluation:
    """Computes all scores and tables of a generated set.

    Args:
        sets: the generated images and the table of attempts.
        observed: observations of the sets "raw", "accepted" and "untuned".
        real: observations of the real images of "train", "val" and "test".
        slugs: names of all tissues.
        extractor: name of the feature extractor.
        fidelity: settings of distances and variety.
        images_per_tissue: number of requested images of each tissue.
        max_attempts: limit of attempts per image.
        seed: seed of bootstrap and subsamples.

    Raises:
        DataError: there are no raw images.
    """
    raw = observed["raw"]
    if len(raw.labels) == 0:
        raise DataError("raw images", "none, expected the first attempt at every requested image")
    scored = {(name, by): score_set(observed[name].labels, observed[name].predicted(by), slugs, seed) for name, by in KEYS}
    copying, pairs = _copying(observed, real, slugs, fidelity.reference_per_tissue, seed)
    metrics = {
        **scored[HEADLINE],
        **{name: scored[key] for key, name in KEYS.items() if name},
        "gate_gaming": bootstrap_difference(raw.labels, raw.predicted("gate"), raw.predicted("judge"), len(slugs), seed),
        "real_images": _accuracies(real),
        "realism": {"extractor": extractor, **_fidelity(observed, real, slugs, fidelity, seed)},
        "copying": copying,
        "calibration": {"gate": {split: {"ece": _gate_calibration_error(real[split])} for split in ("val", "test")}},
    }
    frames = {
        **{name: tables.images_table(observed[name], sets.slots(name), slugs) for name in ("raw", "accepted")},
        "per_tissue": tables.per_tissue_table(scored, slugs),
        "thresholds": tables.thresholds_table(raw, slugs),
        "reliability": tables.reliability_table({"test": real["test"], "raw": raw}),
        "pairs": tables.pairs_table(pairs, observed["accepted"], sets.slots("accepted"), real["train"], slugs),
    }
    if sets.attempts is not None:
        filled = filled_curve(sets.attempts, images_per_tissue, max_attempts)
        frames["filled"] = tables.filled_table(filled)
        metrics["cost"] = _cost(sets.attempts, filled, images_per_tissue, slugs)
    return Evaluation(metrics, frames, pairs)


def variety_lost(raw: Mapping[str, Any], accepted: Mapping[str, Any]) -> dict[str, float]:
    """Recall and coverage of raw minus accepted images, averaged over tissues.

    Averages scores per tissue, because scores over all tissues may have references with different tissue proportions. A tissue
    without accepted images counts as a loss of the whole score; one with too few images for a score is left out of the mean.

    Args:
        raw, accepted: scores by `fidelity_scores`.
    """
    lost = {}
    for name in ("recall", "coverage"):
        differences = []
        for slug, before in raw["per_tissue"].items():
            after = accepted["per_tissue"][slug]
            kept = 0.0 if not after["n_images"] else after.get(name)
            if name in before and kept is not None:
                differences.append(before[name] - kept)
        if differences:
            lost[name] = round_score(np.mean(differences))
    return lost


def _accuracies(real: Mapping[str, Observed]) -> dict:
    """Accuracy of each observer on held-out real images."""

    def accuracy(observed: Observed, observer: str) -> float:
        return round_score((observed.predicted(observer) == observed.labels).mean())

    return {observer: {split: accuracy(real[split], observer) for split in ("val", "test")} for observer in OBSERVERS}


def _fidelity(
    observed: Mapping[str, Observed], real: Mapping[str, Observed], slugs: Sequence[str], settings: FidelitySettings, seed: int
) -> dict:
    """Fidelity of raw and accepted images, and of as many real ones: val, and test as the floor.

    Each set is compared with training images in its own tissue proportions.
    """
    train, tissues = real["train"], len(slugs)
    compared = {name: (observed[name].features, observed[name].labels) for name in ("raw", "accepted")}
    wanted = np.bincount(observed["raw"].labels, minlength=tissues)
    for name, split in (("val", "val"), ("floor", "test")):
        labels = real[split].labels
        counts = proportional_counts(np.bincount(labels, minlength=tissues), wanted, max_factor=1.0)
        selected = subsample_per_class(labels, counts, seed)
        compared[name] = (real[split].features[selected], labels[selected])
    available = np.minimum(np.bincount(train.labels, minlength=tissues), settings.reference_per_tissue)
    kept = subsample_per_class(train.labels, available, seed)
    features, reference_labels = train.features[kept].astype(np.float64), train.labels[kept]
    per_class = [RealFeatures(features[reference_labels == i]) for i in range(tissues)]

    @cache
    def mixture(counts: tuple[int, ...]) -> RealFeatures:
        return RealFeatures(features[subsample_per_class(reference_labels, np.array(counts), seed)])

    scores = {}
    for name, (rows, labels) in compared.items():
        counts = proportional_counts(available, np.bincount(labels, minlength=tissues))
        scores[name] = fidelity_scores(
            np.asarray(rows, np.float64),
            labels,
            mixture(tuple(counts if counts.any() else available)),
            per_class,
            slugs=slugs,
            seed=seed,
            kernel_subsets=settings.kernel_subsets,
            kernel_subset_size=settings.kernel_subset_size,
        )
    head = {"dimensions": features.shape[1], "nearest_neighbours": NEAREST_NEIGHBOURS}
    return {**head, **scores, "variety_lost": variety_lost(scores["raw"], scores["accepted"])}


def _copying(
    observed: Mapping[str, Observed], real: Mapping[str, Observed], slugs: Sequence[str], max_per_tissue: int, seed: int
) -> tuple[dict, dict[str, Pairs]]:
    """Shares of images that are closer to a training image than validation images are, and the closest accepted images."""
    train, val = real["train"], real["val"]
    selected = subsample_per_class(val.labels, np.full(len(slugs), max_per_tissue), seed)
    scores: dict = {"raw": {}, "accepted": {}}
    pairs = {}
    for space in ("features", "pixels"):
        references = getattr(train, space)
        val_distances, _ = find_nearest(getattr(val, space)[selected], references)
        for name in scores:
            distances, indices = find_nearest(getattr(observed[name], space), references)
            arguments = (distances, observed[name].labels, val_distances, val.labels[selected], slugs)
            scores[name][space] = copying_scores(*arguments)
            if name == "accepted":
                images, close = closest_pairs(*arguments, CLOSEST_PAIRS)
                pairs[space] = Pairs(images, indices[images], close)
    return scores, pairs


def _gate_calibration_error(observed: Observed) -> float:
    return expected_calibration_error(observed.probabilities["gate"], observed.labels)


def _cost(attempts: pd.DataFrame, filled: list[dict], requested: int, slugs: Sequence[str]) -> dict:
    """Attempts per accepted image, number of missing images, and the share of images filled after each attempt."""

    def count(rows: pd.DataFrame, requested: int) -> dict:
        accepted = int(rows["accepted"].sum())
        shortfall = {"shortfall": requested - accepted}
        if not accepted:
            return {**shortfall, "undefined": {"attempts_per_accepted": "no image was accepted"}}
        return {"attempts_per_accepted": round_score(len(rows) / accepted), **shortfall}

    after = {str(row["attempt"]): row["filled"] for row in filled if row["tissue"] == "all"}
    per_tissue = {slug: count(attempts[attempts["tissue"] == slug], requested) for slug in slugs}
    return {**count(attempts, requested * len(slugs)), "filled_after": after, "per_tissue": per_tissue}
