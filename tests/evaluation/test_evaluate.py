"""The evaluation: which set is scored by whom, scores of degenerate sets, and tables."""

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
from pathsynth.evaluation.evaluate import Evaluation, evaluate
from pathsynth.evaluation.set_scores import SetScorer
from pathsynth.evaluation.tables import write_tables
from pathsynth.features.observe import COPIES, OBSERVERS, PIXELS, Observed

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
    features, structure = (
        (rng.normal(size=(len(y_true), width)) + 3.0 * np.eye(N, width)[y_true]).astype(np.float32) for width in (6, 45)
    )
    pixels = rng.integers(0, 256, (len(y_true), PIXELS, PIXELS, 3), np.uint8)
    return Observed(y_true, probabilities, features, structure, pixels)


@pytest.fixture(scope="module")
def scorer() -> SetScorer:
    real = {split: observations(np.repeat(np.arange(N), 14), seed=i) for i, split in enumerate(("train", "val", "test"), 10)}
    train = real["train"]
    moved = train.pixels[:18, ::-1]
    copies = Observed(
        train.labels[:18], train.select(np.arange(18)).probabilities, *(train.features[:18], train.structure[:18], moved)
    )
    return SetScorer({**real, COPIES: copies}, SLUGS, seed=1)


def evaluate_sets(
    scorer: SetScorer, raw: Observed, accepted: Observed, attempts: pd.DataFrame | None = None, **controls: Observed
) -> Evaluation:
    observed = {"raw": raw, "accepted": accepted, **controls}
    sets = {
        name: LabelledImages(np.zeros((len(seen.labels), 8, 8, 3), np.uint8), seen.labels) for name, seen in observed.items()
    }
    generated = GeneratedSets(sets.pop("raw"), sets.pop("accepted"), sets, attempts)
    return evaluate(generated, observed, scorer, extractor="judge", images_per_tissue=PER_TISSUE, max_attempts=2)


@pytest.fixture(scope="module")
def result(scorer) -> Evaluation:
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
    controls = {"untuned": observations(Y_TRUE, {"judge": all_adipose}, seed=3), "paraphrased": observations(Y_TRUE, seed=4)}
    return evaluate_sets(scorer, raw, observations(Y_TRUE, seed=2), pd.DataFrame(rows), **controls)


# Who scores what


def test_raw_images_are_scored_by_the_gate(result: Evaluation):
    scores, expected = result.metrics["sets"]["raw"]["gate"], classification_scores(Y_TRUE, BY_GATE, SLUGS)
    per_tissue = expected.pop("per_tissue")
    assert {key: scores[key] for key in expected} == expected
    assert all(scores["per_tissue"][slug].items() >= row.items() for slug, row in per_tissue.items())
    assert scores["accuracy"] == 0.75
    for name in ("macro_f1", "macro_precision", "macro_recall", "accuracy"):
        assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]


def test_every_set_has_every_score(result: Evaluation):
    metrics = result.metrics
    assert set(metrics) == {
        "extractor", "nearest_neighbours", "sets", "copying_control", "observers", "real_images", "calibration", "cost"
    }  # fmt: skip
    assert list(metrics["sets"]) == ["raw", "accepted", "untuned", "paraphrased", "val", "test"]
    for scores in metrics["sets"].values():
        assert set(scores) == {
            "n_images", "gate", "judge", "colour", "open_set", "features", "structure", "orientation", "nuclei",
            "colour_spread", "two_sample_auc", "copying",
        }  # fmt: skip
        assert set(scores["copying"]) == {"pixels", "structure"} and set(scores["two_sample_auc"]) == {"spectrum", "structure"}
    assert files.format_json("evaluation.json", metrics)


def test_each_set_is_scored_by_each_observer(result: Evaluation):
    sets, observers = result.metrics["sets"], result.metrics["observers"]
    assert sets["accepted"]["judge"]["accuracy"] == 1.0
    assert sets["untuned"]["judge"]["accuracy"] == sets["raw"]["colour"]["accuracy"] == pytest.approx(1 / 9, abs=1e-6)
    assert sets["raw"]["judge"]["accuracy"] == pytest.approx(24 / 36, abs=1e-6)
    gap, (gate, judge) = observers["gate_minus_judge"], (sets["raw"][by]["macro_f1"] for by in ("gate", "judge"))
    assert gap["difference"] == pytest.approx(gate - judge, abs=2e-6)
    assert gap["low"] <= gap["difference"] <= gap["high"]
    assert result.metrics["real_images"]["judge"] == {"val": 1.0, "test": 1.0}


def test_observers_are_compared(result: Evaluation):
    observers = result.metrics["observers"]
    # the gate errs on the first image of each tissue, the judge on these and on the other three of the first
    assert observers["raw"]["both_wrong"] == observers["raw"]["same_wrong_class"] == 9
    assert observers["raw"]["expected_both_wrong"] == 3.0
    assert observers["real_test"]["both_wrong"] == 0 and "kappa" in observers["real_test"]["undefined"]
    # twelve of the 36 first images are wrong by the judge, none of the accepted ones
    assert observers["filter_gain"]["difference"] == pytest.approx(12 / 36, abs=1e-6)
    assert observers["disputed"]["n_disputed"] == 0 and observers["disputed"]["n_images"] == 36


def test_cost_counts_attempts(result: Evaluation):
    cost = result.metrics["cost"]
    assert cost["attempts_per_accepted"] == 1.25 and cost["shortfall"] == 0
    assert cost["filled_after"] == {"1": 0.75, "2": 1.0}
    assert cost["per_tissue"]["mucus"] == {"attempts_per_accepted": 1.25, "acceptance_rate": 0.8, "shortfall": 0}


def test_real_sets_have_as_many_images_as_the_raw_set(scorer):
    seen = observations(np.repeat(np.arange(N), 5))
    sets = evaluate_sets(scorer, seen, seen).metrics["sets"]
    assert sets["val"]["n_images"] == sets["test"]["n_images"] == sets["raw"]["n_images"] == 45


def test_copies_are_found_in_pixels_and_structure(scorer):
    train = scorer.real["train"]
    copies = Observed(train.labels, train.probabilities, train.features, train.structure, train.pixels[:, ::-1])
    fresh = observations(train.labels, seed=5)
    copied, new = evaluate_sets(scorer, copies, copies), evaluate_sets(scorer, fresh, fresh)
    for space in ("pixels", "structure"):
        assert copied.metrics["sets"]["accepted"]["copying"][space]["share"] == 1.0, space
        assert copied.metrics["copying_control"][space]["share"] == 1.0, space
        assert new.metrics["sets"]["accepted"]["copying"][space]["share"] < 0.1, space
        assert (copied.pairs[space].images == copied.pairs[space].nearest).all()
    table = copied.tables["pairs"]
    assert (table["tissue"] == table["train_tissue"]).all() and table["distance"].max() < 1e-3


# Degenerate sets


def test_set_without_accepted_images_has_no_scores(scorer):
    seen, nothing = observations(np.repeat(np.arange(N), 12)), observations(Y_TRUE[:0])
    result = evaluate_sets(scorer, seen, nothing, untuned=nothing)
    metrics = result.metrics
    assert metrics["sets"]["accepted"] == metrics["sets"]["untuned"] == {"n_images": 0}
    assert "cost" not in metrics and "not regenerated" in metrics["observers"]["filter_gain"]["undefined"]
    assert files.format_json("evaluation.json", metrics)
    assert result.tables["per_tissue"]["accepted_judge_f1"].isna().all()
    assert result.tables["per_tissue"]["raw_gate_f1"].notna().all()
    assert result.tables["pairs"].empty
    with pytest.raises(DataError, match="raw images: none"):
        evaluate_sets(scorer, nothing, seen)


@pytest.mark.parametrize(
    "y_true", [np.zeros(1, int), np.zeros(5, int), np.arange(N)], ids=["one image", "one tissue", "one of each"]
)
def test_few_images_have_scores_or_reasons(y_true: np.ndarray, scorer):
    metrics = evaluate_sets(scorer, observations(y_true), observations(y_true)).metrics
    assert files.format_json("evaluation.json", metrics)
    for space in ("features", "structure"):
        scores = metrics["sets"]["raw"][space]
        for name in ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"):
            assert (name in scores) != (name in scores.get("undefined", {})), (space, name)


def test_equal_images_have_scores(scorer):
    y_true = np.repeat(np.arange(N), 12)
    seen = observations(y_true, {name: np.zeros_like(y_true) for name in OBSERVERS})
    flat = Observed(
        seen.labels, seen.probabilities, *(np.zeros_like(rows) for rows in (seen.features, seen.structure, seen.pixels))
    )
    metrics = evaluate_sets(scorer, flat, flat).metrics
    assert files.format_json("evaluation.json", metrics)
    assert metrics["sets"]["raw"]["gate"]["macro_f1"] == pytest.approx(2 / 90, abs=1e-6)


def test_structure_is_scored_where_every_classifier_is_right(scorer):
    """Images of another structure that all classifiers recognize: F1 is 1, open-set F1 is not."""
    seen = observations(np.repeat(np.arange(N), 12))
    other = Observed(seen.labels, seen.probabilities, seen.features, seen.structure + 20.0, seen.pixels)
    scores = {name: scorer.score(each)[0] for name, each in (("same", seen), ("other", other))}
    assert scores["same"]["judge"]["macro_f1"] == scores["other"]["judge"]["macro_f1"] == 1.0
    assert scores["same"]["open_set"]["macro_f1"] > 0.8 and scores["other"]["open_set"]["macro_f1"] == 0.0
    assert abs(scores["same"]["structure"]["kernel_distance"]) < scores["other"]["structure"]["kernel_distance"] / 100
    assert scores["same"]["features"] == scores["other"]["features"]
    assert scores["other"]["two_sample_auc"]["structure"]["auc"] > 0.99


# Tables


def test_tables_have_a_row_per_image_and_per_tissue(result: Evaluation, tmp_path: Path):
    write_tables(tmp_path, result.tables)
    assert {path.stem for path in tmp_path.glob("*.csv")} == {
        "accepted", "filled", "pairs", "per_tissue", "raw", "reliability", "thresholds"
    }  # fmt: skip
    table = pd.read_csv(tmp_path / "raw.csv")
    assert list(table.columns) == ["tissue", "slot", "gate", "judge", "colour"]
    assert table["tissue"].tolist() == [SLUGS[tissue] for tissue in Y_TRUE]
    assert (table["tissue"] == table["gate"]).mean() == result.metrics["sets"]["raw"]["gate"]["accuracy"]
    table = pd.read_csv(tmp_path / "per_tissue.csv", index_col="tissue")
    assert list(table.index) == list(SLUGS) and len(table.columns) == 7 * 5
    assert table["raw_gate_recall"].tolist() == [0.75] * N
