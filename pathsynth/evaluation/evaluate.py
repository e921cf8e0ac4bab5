"""The evaluation of generated images: which sets are scored, by whom, and the tables that show it.

The headline is the paper's measure: prompt against the gate's label on raw images, the first attempt of every wanted image.
The gate's score of what it let through is 100 % by construction, so accepted images are scored by judge and colour control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth.classifiers.metrics import classification_scores, expected_calibration_error, plain
from pathsynth.core import io as files
from pathsynth.core.errors import DataError
from pathsynth.core.rows import Rows, select_rows
from pathsynth.data.generated import GeneratedSets
from pathsynth.data.sampling import in_proportion, subsample_per_class
from pathsynth.evaluation.calibration import filled_curve, reliability, threshold_curve
from pathsynth.evaluation.copying import closest_pairs, copying_scores, nearest
from pathsynth.evaluation.fidelity import NEAREST_NEIGHBOURS, Reference, Settings, realism_scores
from pathsynth.evaluation.settings import FidelitySettings
from pathsynth.evaluation.statistics import bootstrap_difference, bootstrap_scores
from pathsynth.features.observe import OBSERVERS, Observed

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("precision", "recall", "f1", "f1_low", "f1_high")
AVERAGES = ("macro_f1", "macro_precision", "macro_recall", "accuracy")
# By whom each set is scored, and under which key of evaluation.json; the headline is the file's top level.
HEADLINE = ("raw", "gate")
KEYS = {
    HEADLINE: None,
    ("raw", "judge"): "judge",
    ("raw", "colour"): "colour",
    ("accepted", "judge"): "filtered_judge",
    ("accepted", "colour"): "filtered_colour",
    ("untuned", "judge"): "untuned",
}
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
PAIRS = 6


@dataclass(frozen=True)
class Pairs:
    """Generated images and the training images that they are nearest to, closest first.

    Attributes:
        images: indices of generated images, int64 (n,).
        nearest: indices of training images, int64 (n,).
        distances: in units of the median distance of validation images, float64 (n,).
    """

    images: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known of a generated set.

    Attributes:
        metrics: the dict of metrics/evaluation.json.
        tables: by name, the tables of plots/evaluation.
        pairs: of accepted images, by the space in which they are close, "features" or "pixels".
    """

    metrics: dict
    tables: Mapping[str, pd.DataFrame]
    pairs: Mapping[str, Pairs]


def score_set(y_true: np.ndarray, y_pred: np.ndarray, slugs: Sequence[str], seed: int) -> dict:
    """Scores of one set with their 95 % bootstrap intervals.

    Args:
        y_true: prompted tissue, integers (N,), indices into `slugs`.
        y_pred: predicted tissue, integers (N,), indices into `slugs`.
        slugs: names of all tissues.
        seed: seed of the bootstrap.

    Returns:
        macro_f1, macro_precision, macro_recall and accuracy, each with {name}_low and {name}_high, n_images, and
        per_tissue.{slug}.{precision,recall,f1,f1_low,f1_high}. Of a set without images only `n_images`, 0: it has no score.

    Raises:
        ValueError: for labels that are no indices into `slugs`, or unequal lengths.
    """
    if len(y_true) == 0 and len(y_pred) == 0:
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
    seen: Mapping[str, Observed],
    real: Mapping[str, Observed],
    *,
    slugs: Sequence[str],
    extractor: str,
    fidelity: FidelitySettings,
    images_per_tissue: int,
    max_attempts: int,
    seed: int,
    device: str = "cpu",
) -> Evaluation:
    """Scores a generated set in every way there is.

    Args:
        sets: the generated images and the table of attempts.
        seen: the sets "raw", "accepted" and "untuned" as they were seen.
        real: the real images of "train", "val" and "test" as they were seen.
        slugs: names of all tissues.
        extractor: name of what made the features.
        fidelity: settings of distances and variety.
        images_per_tissue: number of wanted images of each tissue.
        max_attempts: limit of attempts per image.
        seed: seed of everything that is drawn.
        device: where distances are computed.

    Raises:
        DataError: when there are no raw images.
    """
    raw = seen["raw"]
    if len(raw.labels) == 0:
        raise DataError("raw images", "none, expected the first attempt of every wanted image")
    scored = {key: score_set(seen[key[0]].labels, seen[key[0]].predicted(key[1]), slugs, seed) for key in KEYS}
    copying, pairs = _copying(seen, real, slugs, fidelity.reference_per_tissue, seed, device)
    metrics = {
        **scored[HEADLINE],
        **{name: scored[key] for key, name in KEYS.items() if name},
        "gate_gaming": bootstrap_difference(raw.labels, raw.predicted("gate"), raw.predicted("judge"), len(slugs), seed),
        "real_images": _accuracies(real),
        "realism": {"extractor": extractor, **_realism(seen, real, slugs, fidelity, seed, device)},
        "copying": copying,
        "calibration": {"gate": {split: {"ece": _calibration_error(real[split])} for split in ("val", "test")}},
    }
    tables = {
        **{name: _images_table(seen[name], sets.slots(name), slugs) for name in ("raw", "accepted")},
        "per_tissue": _per_tissue(scored, slugs),
        "thresholds": _thresholds(raw, slugs),
        "reliability": _reliability({"test": real["test"], "raw": raw}),
        "pairs": _pairs_table(pairs, seen["accepted"], sets.slots("accepted"), real["train"], slugs),
    }
    if sets.attempts is not None:
        filled = filled_curve(sets.attempts, images_per_tissue, max_attempts)
        tables["filled"] = _frame(filled, ("tissue", "attempt", "filled"))
        metrics["cost"] = _cost(sets.attempts, filled, images_per_tissue, slugs)
    return Evaluation(metrics, tables, pairs)


def write_tables(folder: Path, evaluation: Evaluation) -> None:
    """Writes NAME.csv for every table into `folder`.

    Raises:
        DataError: when a file cannot be written.
    """
    for name, table in evaluation.tables.items():
        files.write_csv(folder / f"{name}.csv", table)


def _accuracies(real: Mapping[str, Observed]) -> dict:
    """How often each observer is right on real images it has not learnt from."""
    return {
        observer: {split: plain((real[split].predicted(observer) == real[split].labels).mean()) for split in ("val", "test")}
        for observer in OBSERVERS
    }


def _realism(
    seen: Mapping[str, Observed],
    real: Mapping[str, Observed],
    slugs: Sequence[str],
    settings: FidelitySettings,
    seed: int,
    device: str,
) -> dict:
    """Distances and variety of raw and accepted images, and of as many real ones: val, and the floor, which is test.

    Each set is compared with training images in its own tissue proportions.
    """
    train, tissues = real["train"], len(slugs)
    estimated = Settings(settings.kernel_subsets, settings.kernel_subset_size)
    compared: dict[str, tuple[Rows, np.ndarray]] = {
        name: (seen[name].features, seen[name].labels) for name in ("raw", "accepted")
    }
    wanted = np.bincount(seen["raw"].labels, minlength=tissues)
    for name, split in (("val", "val"), ("floor", "test")):
        labels = real[split].labels
        some = subsample_per_class(labels, in_proportion(np.bincount(labels, minlength=tissues), wanted, most=1.0), seed)
        compared[name] = (select_rows(real[split].features, some), labels[some])
    available = np.minimum(np.bincount(train.labels, minlength=tissues), settings.reference_per_tissue)
    kept = subsample_per_class(train.labels, available, seed)
    whole = Reference(select_rows(train.features, kept), train.labels[kept], NEAREST_NEIGHBOURS, device)
    mixed = {available.tobytes(): whole}
    scores = {}
    for name, (rows, labels) in compared.items():
        counts = in_proportion(available, np.bincount(labels, minlength=tissues))
        key = counts.tobytes()
        if counts.any() and key not in mixed:
            mixed[key] = whole.mixed(subsample_per_class(whole.labels, counts, seed))
        reference = mixed.get(key, whole)
        scores[name] = realism_scores(rows, labels, reference, slugs=slugs, seed=seed, settings=estimated)
    head = {"dimensions": train.features.shape[1], "nearest_neighbours": NEAREST_NEIGHBOURS}
    return {**head, **scores, "variety_lost": variety_lost(scores["raw"], scores["accepted"])}


def variety_lost(raw: Mapping[str, Any], accepted: Mapping[str, Any]) -> dict[str, float]:
    """Recall and coverage of raw minus accepted images, means over tissues, each against all of its real images.

    Of all tissues together the two sets may be compared with other mixtures of real images. A tissue of which nothing was
    accepted has lost all; one with too few images for a score counts in neither mean.

    Args:
        raw, accepted: what `realism_scores` gives.
    """
    lost = {}
    for name in ("recall", "coverage"):
        pairs = []
        for slug, before in raw["per_tissue"].items():
            after = accepted["per_tissue"][slug]
            kept = 0.0 if not after["n_images"] else after.get(name)
            if name in before and kept is not None:
                pairs.append(before[name] - kept)
        if pairs:
            lost[name] = plain(np.mean(pairs))
    return lost


def _copying(
    seen: Mapping[str, Observed], real: Mapping[str, Observed], slugs: Sequence[str], most: int, seed: int, device: str
) -> tuple[dict, dict[str, Pairs]]:
    """Shares of images that are closer to a training image than real ones are, and the closest of the accepted images."""
    train, val = real["train"], real["val"]
    some = subsample_per_class(val.labels, np.full(len(slugs), most), seed)
    scores: dict = {"raw": {}, "accepted": {}}
    pairs = {}
    for space in ("features", "pixels"):
        references = getattr(train, space)
        held_out, _ = nearest(select_rows(getattr(val, space), some), references, device)
        for name in scores:
            distances, indices = nearest(getattr(seen[name], space), references, device)
            given = (distances, seen[name].labels, held_out, val.labels[some], slugs)
            scores[name][space] = copying_scores(*given)
            if name == "accepted":
                images, close = closest_pairs(*given, PAIRS)
                pairs[space] = Pairs(images, indices[images], close)
    return scores, pairs


def _calibration_error(observed: Observed) -> float:
    return expected_calibration_error(observed.probabilities["gate"], observed.labels)


def _cost(attempts: pd.DataFrame, filled: list[dict], wanted: int, slugs: Sequence[str]) -> dict:
    """Attempts per accepted image, wanted images that are missing, and the share that was there after so many attempts."""

    def counts(rows: pd.DataFrame, wanted: int) -> dict:
        accepted = int(rows["accepted"].sum())
        shortfall = {"shortfall": wanted - accepted}
        if not accepted:
            return {**shortfall, "undefined": {"attempts_per_accepted": "no image was accepted"}}
        return {"attempts_per_accepted": plain(len(rows) / accepted), **shortfall}

    after = {str(row["attempt"]): row["filled"] for row in filled if row["tissue"] == "all"}
    per_tissue = {slug: counts(attempts[attempts["tissue"] == slug], wanted) for slug in slugs}
    return {**counts(attempts, wanted * len(slugs)), "filled_after": after, "per_tissue": per_tissue}


def _images_table(observed: Observed, slots: np.ndarray, slugs: Sequence[str]) -> pd.DataFrame:
    """One row per image: prompted tissue, slot, and what each observer sees."""
    import pandas as pd

    names = np.array(slugs)
    seen = {observer: names[observed.predicted(observer)] for observer in OBSERVERS}
    return pd.DataFrame({"tissue": names[observed.labels], "slot": slots, **seen})


def _per_tissue(scored: Mapping[tuple[str, str], dict], slugs: Sequence[str]) -> pd.DataFrame:
    """One row per tissue; columns such as `raw_judge_f1` for every set and score, empty for a set without images."""
    none = dict.fromkeys(SCORES)
    rows = [
        {"tissue": slug}
        | {
            f"{name}_{by}_{score}": scores.get("per_tissue", {}).get(slug, none)[score]
            for (name, by), scores in scored.items()
            for score in SCORES
        }
        for slug in slugs
    ]
    return _frame(rows, tuple(rows[0]))


def _thresholds(raw: Observed, slugs: Sequence[str]) -> pd.DataFrame:
    gate, judge = raw.predicted("gate"), raw.predicted("judge")
    rows = threshold_curve(raw.labels, gate, raw.confidence("gate"), judge, slugs, THRESHOLDS)
    return _frame(rows, tuple(rows[0]))


def _reliability(sets: Mapping[str, Observed]) -> pd.DataFrame:
    """The gate's confidence beside how often it is right: on real images, and on generated ones about their prompts."""
    rows = [
        {"set": name, **row}
        for name, observed in sets.items()
        for row in reliability(observed.confidence("gate"), observed.predicted("gate") == observed.labels)
    ]
    return _frame(rows, ("set", "low", "high", "n", "confidence", "accuracy"))


def _pairs_table(
    pairs: Mapping[str, Pairs], accepted: Observed, slots: np.ndarray, train: Observed, slugs: Sequence[str]
) -> pd.DataFrame:
    rows = [
        {
            "space": space,
            "rank": rank,
            "tissue": slugs[accepted.labels[image]],
            "slot": int(slots[image]),
            "distance": plain(distance),
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
