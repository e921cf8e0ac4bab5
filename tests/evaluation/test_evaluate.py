"""The evaluation: which set is scored by whom, scores of degenerate sets, tables, and the filled card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pathsynth.classifiers.metrics import classification_scores
from pathsynth.core import io as files
from pathsynth.core.errors import DataError
from pathsynth.data import labels
from pathsynth.data.generated import GeneratedSets, LabelledImages
from pathsynth.data.provenance import SCORES_PLACEHOLDER
from pathsynth.evaluation.card_scores import fill_scores
from pathsynth.evaluation.evaluate import Evaluation, evaluate
from pathsynth.evaluation.settings import FidelitySettings
from pathsynth.evaluation.tables import write_tables
from pathsynth.features.observe import OBSERVERS, Observed

SLUGS = labels.SLUGS
N = len(SLUGS)
PER_TISSUE = 4
Y_TRUE = np.repeat(np.arange(N), PER_TISSUE)
# the gate takes the first image of each tissue for the next tissue
BY_GATE = (Y_TRUE + (np.arange(len(Y_TRUE)) % PER_TISSUE == 0)) % N


def observations(y_true: np.ndarray, predicted: dict[str, np.ndarray] | None = None, seed: int = 0) -> Observed:
    """Observations with the given predictions, correct by default, and a cloud of features for each tissue."""
    rng, y_true = np.random.default_rng(seed), np.asarray(y_true, np.int64)
    probabilities = {name: np.eye(N, dtype=np.float32)[(predicted or {}).get(name, y_true)] for name in OBSERVERS}
    features = (rng.normal(size=(len(y_true), 6)) + 3.0 * np.eye(N, 6)[y_true]).astype(np.float32)
    pixels = rng.integers(0, 256, (len(y_true), 4, 4, 3), np.uint8)
    return Observed(y_true, probabilities, features, pixels)


def real() -> dict[str, Observed]:
    return {split: observations(np.repeat(np.arange(N), 14), seed=i + 10) for i, split in enumerate(("train", "val", "test"))}


def evaluate_sets(raw: Observed, accepted: Observed, untuned: Observed, attempts: pd.DataFrame | None = None) -> Evaluation:
    observed = {"raw": raw, "accepted": accepted, "untuned": untuned}
    sets = {
        name: LabelledImages(np.zeros((len(seen.labels), 8, 8, 3), np.uint8), seen.labels) for name, seen in observed.items()
    }
    return evaluate(
        GeneratedSets(**sets, attempts=attempts), observed, real(), slugs=SLUGS, extractor="judge",
        fidelity=FidelitySettings(reference_per_tissue=20, kernel_subsets=3, kernel_subset_size=10),
        images_per_tissue=PER_TISSUE, max_attempts=2, seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result() -> Evaluation:
    """Every rejected first attempt is followed by a second one that is accepted."""
    rows = []
    for i, (tissue, predicted) in enumerate(zip(Y_TRUE, BY_GATE, strict=True)):
        row = {"tissue": SLUGS[tissue], "slot": i % PER_TISSUE}
        rows.append({**row, "attempt": 0, "accepted": int(tissue == predicted)})
        if tissue != predicted:
            rows.append({**row, "attempt": 1, "accepted": 1})
    all_adipose = np.zeros_like(Y_TRUE)
    by_judge = np.where(Y_TRUE == 0, 1, BY_GATE)
    raw = observations(Y_TRUE, {"gate": BY_GATE, "judge": by_judge, "colour": all_adipose}, seed=1)
    untuned = observations(Y_TRUE, {"judge": all_adipose}, seed=3)
    return evaluate_sets(raw, observations(Y_TRUE, seed=2), untuned, pd.DataFrame(rows))


# Who scores what


def test_headline_scores_raw_images_by_gate(result: Evaluation):
    metrics, expected = result.metrics, classification_scores(Y_TRUE, BY_GATE, SLUGS)
    per_tissue = expected.pop("per_tissue")
    assert {key: metrics[key] for key in expected} == expected
    assert all(metrics["per_tissue"][slug].items() >= row.items() for slug, row in per_tissue.items())
    assert metrics["accuracy"] == 0.75
    for name in ("macro_f1", "macro_precision", "macro_recall", "accuracy"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]


def test_metrics_have_their_published_keys(result: Evaluation):
    averages = {"macro_f1", "macro_precision", "macro_recall", "accuracy"}
    names = averages | {f"{name}_{end}" for name in averages for end in ("low", "high")} | {"n_images", "per_tissue"}
    metrics = result.metrics
    sets = {"judge", "colour", "filtered_judge", "filtered_colour", "untuned"}
    assert set(metrics) == names | sets | {"gate_gaming", "real_images", "realism", "copying", "calibration", "cost"}
    for name in sets:
        assert set(metrics[name]) == names
        assert set(metrics[name]["per_tissue"]) == set(SLUGS)
    assert {"raw", "accepted", "val", "floor", "variety_lost", "extractor", "dimensions"} <= set(metrics["realism"])
    assert files.format_json("evaluation.json", metrics)


def test_each_set_is_scored_by_its_observer(result: Evaluation):
    metrics = result.metrics
    assert metrics["filtered_judge"]["accuracy"] == 1.0
    assert metrics["untuned"]["accuracy"] == metrics["colour"]["accuracy"] == pytest.approx(1 / 9, abs=1e-6)
    assert metrics["judge"]["accuracy"] == pytest.approx(24 / 36, abs=1e-6)
    gaming = metrics["gate_gaming"]
    assert gaming["difference"] == pytest.approx(metrics["macro_f1"] - metrics["judge"]["macro_f1"], abs=2e-6)
    assert gaming["low"] <= gaming["difference"] <= gaming["high"]
    assert metrics["real_images"]["judge"] == {"val": 1.0, "test": 1.0}


def test_cost_counts_attempts(result: Evaluation):
    cost = result.metrics["cost"]
    assert cost["attempts_per_accepted"] == 1.25 and cost["shortfall"] == 0
    assert cost["filled_after"] == {"1": 0.75, "2": 1.0}
    assert cost["per_tissue"]["mucus"] == {"attempts_per_accepted": 1.25, "shortfall": 0}


def test_val_and_floor_have_as_many_images_as_the_raw_set():
    seen = observations(np.repeat(np.arange(N), 5))
    realism = evaluate_sets(seen, seen, seen).metrics["realism"]
    assert realism["val"]["n_images"] == realism["floor"]["n_images"] == realism["raw"]["n_images"] == 45
    assert realism["floor"]["frechet_distance"] > 0


def test_reference_has_the_tissue_proportions_of_the_set():
    # twice as many of the first tissue: of 14 real images each, 14 of the first and 7 of the others remain
    y_true = np.repeat(np.arange(N), [10] + [5] * (N - 1))
    uneven, even = observations(y_true), observations(np.repeat(np.arange(N), 5))
    realism = evaluate_sets(uneven, even, even).metrics["realism"]
    assert realism["raw"]["n_reference"] == 14 + 7 * (N - 1)
    assert realism["accepted"]["n_reference"] == 14 * N
    assert realism["raw"]["per_tissue"]["mucus"]["n_reference"] == 14


def test_lost_variety_includes_tissues_without_accepted_images():
    y_true = np.repeat(np.arange(N), 12)
    raw, accepted = observations(y_true), observations(y_true[y_true > 0])
    realism = evaluate_sets(raw, accepted, raw).metrics["realism"]
    coverage = {
        name: [realism[name]["per_tissue"][slug].get("coverage", 0.0) for slug in SLUGS] for name in ("raw", "accepted")
    }
    assert coverage["raw"][0] > 0.2 and coverage["accepted"][0] == 0.0
    expected = np.subtract(coverage["raw"], coverage["accepted"]).mean()
    assert realism["variety_lost"]["coverage"] == pytest.approx(expected, abs=1e-5)
    assert evaluate_sets(raw, raw, raw).metrics["realism"]["variety_lost"] == {"recall": 0.0, "coverage": 0.0}


def test_copies_are_found_in_features_and_pixels():
    train = real()["train"]
    copies = Observed(train.labels, train.probabilities, train.features, train.pixels[:, ::-1])
    fresh = observations(train.labels, seed=5)
    copied, new = evaluate_sets(copies, copies, fresh), evaluate_sets(fresh, fresh, fresh)
    for space in ("features", "pixels"):
        assert copied.metrics["copying"]["accepted"][space]["share_below"] == 1.0, space
        assert new.metrics["copying"]["accepted"][space]["share_below"] < 0.1, space
        assert (copied.pairs[space].images == copied.pairs[space].nearest).all()
    table = copied.tables["pairs"]
    assert (table["tissue"] == table["train_tissue"]).all() and table["distance"].max() < 1e-3


# Degenerate sets


def test_set_without_accepted_images_has_no_scores():
    seen, nothing = observations(np.repeat(np.arange(N), 12)), observations(Y_TRUE[:0])
    result = evaluate_sets(seen, nothing, nothing)
    metrics = result.metrics
    assert metrics["filtered_judge"] == metrics["untuned"] == {"n_images": 0}
    assert set(metrics["realism"]["accepted"]["undefined"]) >= {"frechet_distance", "kernel_distance", "precision"}
    assert "share_below" in metrics["copying"]["accepted"]["pixels"]["undefined"]
    raw = metrics["realism"]["raw"]["per_tissue"]
    everything = {name: np.mean([part[name] for part in raw.values()]) for name in ("recall", "coverage")}
    assert metrics["realism"]["variety_lost"] == pytest.approx(everything, abs=1e-6)
    assert "cost" not in metrics
    assert files.format_json("evaluation.json", metrics)
    assert result.tables["per_tissue"]["accepted_judge_f1"].isna().all()
    assert result.tables["per_tissue"]["raw_gate_f1"].notna().all()
    assert result.tables["pairs"].empty
    with pytest.raises(DataError, match="raw images: none"):
        evaluate_sets(nothing, seen, seen)


@pytest.mark.parametrize(
    "y_true", [np.zeros(1, int), np.zeros(5, int), np.arange(N)], ids=["one image", "one tissue", "one of each"]
)
def test_few_images_have_scores_or_reasons(y_true: np.ndarray):
    metrics = evaluate_sets(observations(y_true), observations(y_true), observations(y_true)).metrics
    assert files.format_json("evaluation.json", metrics)
    for name in ("raw", "accepted"):
        for part in (metrics["realism"][name], *metrics["realism"][name]["per_tissue"].values()):
            for score in ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"):
                assert (score in part) != (score in part.get("undefined", {}))


def test_equal_images_have_scores():
    y_true = np.repeat(np.arange(N), 12)
    seen = observations(y_true, {name: np.zeros_like(y_true) for name in OBSERVERS})
    flat = Observed(seen.labels, seen.probabilities, np.ones_like(seen.features), np.zeros_like(seen.pixels))
    metrics = evaluate_sets(flat, flat, flat).metrics
    assert files.format_json("evaluation.json", metrics)
    assert metrics["macro_f1"] == pytest.approx(2 / 90, abs=1e-6)


# Tables and card


def test_tables_have_a_row_per_image_and_per_tissue(result: Evaluation, tmp_path: Path):
    write_tables(tmp_path, result.tables)
    assert {path.stem for path in tmp_path.glob("*.csv")} == {
        "accepted", "filled", "pairs", "per_tissue", "raw", "reliability", "thresholds"
    }  # fmt: skip
    table = pd.read_csv(tmp_path / "raw.csv")
    assert list(table.columns) == ["tissue", "slot", "gate", "judge", "colour"]
    assert table["tissue"].tolist() == [SLUGS[tissue] for tissue in Y_TRUE]
    assert (table["tissue"] == table["gate"]).mean() == result.metrics["accuracy"]
    table = pd.read_csv(tmp_path / "per_tissue.csv", index_col="tissue")
    assert list(table.index) == list(SLUGS) and len(table.columns) == 6 * 5
    assert table["raw_gate_recall"].tolist() == [0.75] * N


def test_card_is_filled_with_scores_or_says_that_there_are_none(result: Evaluation):
    card = f"# Set\n\n{SCORES_PLACEHOLDER}\n\nlicence"
    text = fill_scores(card, result.metrics)
    assert text.startswith("# Set\n\n| macro F1") and text.endswith("\n\nlicence") and SCORES_PLACEHOLDER not in text
    assert f"| raw images by the gate | {result.metrics['macro_f1']:.3f} |" in text
    empty = {**result.metrics, "filtered_judge": {"n_images": 0}}
    empty["realism"] = {**empty["realism"], "accepted": {"undefined": {"frechet_distance": "no images"}}}
    assert "| accepted images by the judge | no images | |" in fill_scores(card, empty)
    assert "training images not defined" in fill_scores(card, empty)
    assert fill_scores("other text", result.metrics) == "other text"
