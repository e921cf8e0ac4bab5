"""The evaluation: which set is scored by whom, its tables and its plates, on drawn phantoms and observers that do as told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from pathsynth.cli import summary
from pathsynth.core import io as files
from pathsynth.core.errors import DataError
from pathsynth.data import archives, generated, labels
from pathsynth.data.generated import GeneratedSets, LabelledImages
from pathsynth.evaluation import contact_sheets as plates
from pathsynth.evaluation import evaluate as evaluation
from pathsynth.evaluation import statistics as scores
from pathsynth.evaluation.settings import RealismSettings
from pathsynth.features.observe import OBSERVERS, Observed
from pathsynth.features.settings import JudgeFeatures
from pathsynth.generation.settings import GenerationSettings
from pathsynth.sources import phantom

SLUGS = labels.SLUGS
N = len(SLUGS)
PER_TISSUE = 4
CAPTION = "synthetic images, a stand-in"


SETTINGS = RealismSettings(
    features=JudgeFeatures(extractor="judge"),
    nearest_neighbours=2,
    reference_per_tissue=20,
    kernel_subsets=3,
    kernel_subset_size=10,
)
GENERATION = GenerationSettings(
    images_per_tissue=PER_TISSUE, max_attempts=2, quota=0.0, scheduler="DDIMScheduler", num_inference_steps=1,
    guidance_scale=1.0, negative_prompt="", batch_size=1, mixed_precision="no", weight_dtype="fp32",
)  # fmt: skip


def observed(labels: np.ndarray, told: dict[str, np.ndarray] | None = None, seed: int = 0) -> Observed:
    """A set as it was seen: by observers that answer as told, or rightly, and features in a cloud for each tissue."""
    rng, labels = np.random.default_rng(seed), np.asarray(labels, np.int64)
    answers = {name: np.eye(N, dtype=np.float32)[(told or {}).get(name, labels)] for name in OBSERVERS}
    features = (rng.normal(size=(len(labels), 6)) + 3.0 * np.eye(N, 6)[labels]).astype(np.float32)
    pixels = rng.integers(0, 256, (len(labels), 4, 4, 3), np.uint8)
    return Observed(labels, answers, features, pixels)


def real() -> dict[str, Observed]:
    return {split: observed(np.repeat(np.arange(N), 14), seed=i + 10) for i, split in enumerate(("train", "val", "test"))}


def evaluated(raw: Observed, accepted: Observed, untuned: Observed, attempts=None) -> evaluation.Evaluation:
    """The evaluation of three sets that were seen so."""
    images = [LabelledImages(np.zeros((len(seen.labels), 8, 8, 3), np.uint8), seen.labels) for seen in (raw, accepted, untuned)]
    seen = {"raw": raw, "accepted": accepted, "untuned": untuned}
    return evaluation.evaluate(
        GeneratedSets(*images, attempts), seen, real(), slugs=SLUGS, extractor="judge", realism=SETTINGS,
        generation=GENERATION, resamples=100, seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> LabelledImages:
    images, y_true = phantom.draw_split(PER_TISSUE, 0, 32, "val")
    order = np.argsort(y_true.ravel(), kind="stable")
    return LabelledImages(images[order], y_true.ravel()[order])


@pytest.fixture(scope="module")
def by_gate(drawn: LabelledImages) -> np.ndarray:
    """Of each tissue the first image is taken for the next tissue."""
    first = np.arange(len(drawn.labels)) % PER_TISSUE == 0
    return (drawn.labels.astype(np.int64) + first) % N


@pytest.fixture(scope="module")
def result(drawn: LabelledImages, by_gate: np.ndarray, attempts: pd.DataFrame) -> evaluation.Evaluation:
    labels_ = drawn.labels.astype(np.int64)
    judged = np.where(labels_ == 0, 1, by_gate)
    raw = observed(labels_, {"gate": by_gate, "judge": judged, "colour": np.zeros_like(labels_)}, seed=1)
    return evaluated(raw, observed(labels_, seed=2), observed(labels_, {"judge": np.zeros_like(labels_)}, seed=3), attempts)


@pytest.fixture(scope="module")
def attempts(drawn: LabelledImages, by_gate: np.ndarray) -> pd.DataFrame:
    """The first attempts as the gate saw them, each refused one followed by a second attempt that is accepted."""
    rows = []
    for i, (tissue, seen) in enumerate(zip(drawn.labels, by_gate, strict=True)):
        row = {"tissue": SLUGS[tissue], "slot": i % PER_TISSUE, "seed": i, "confidence": 0.9}
        rows.append({**row, "attempt": 0, "predicted": SLUGS[seen], "accepted": int(tissue == seen)})
        if tissue != seen:
            rows.append({**row, "attempt": 1, "predicted": SLUGS[tissue], "accepted": 1})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def sheets(drawn: LabelledImages, by_gate: np.ndarray) -> dict[str, Image.Image]:
    return draw(drawn, by_gate)


def draw(drawn: LabelledImages, by_gate: np.ndarray) -> dict[str, Image.Image]:
    nothing = LabelledImages(drawn.images[:0], drawn.labels[:0])
    sets = GeneratedSets(drawn, nothing, nothing)
    return plates.draw_plates(sets, by_gate, drawn, labels.PATHMNIST, SLUGS, CAPTION)


def test_headline_is_raw_by_gate(result: evaluation.Evaluation, drawn: LabelledImages, by_gate: np.ndarray):
    metrics = result.metrics
    expected = scores.classification_scores(drawn.labels, by_gate, SLUGS)
    for slug in SLUGS:
        assert metrics["per_tissue"][slug].items() >= expected["per_tissue"].pop(slug).items()
    assert {key: metrics[key] for key in expected if key != "per_tissue"} | {"per_tissue": {}} == expected
    assert metrics["accuracy"] == 0.75
    for name in ("macro_f1", "macro_precision", "macro_recall", "accuracy"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]


def test_metrics_have_the_names_that_others_rely_on(result: evaluation.Evaluation):
    averages = {"macro_f1", "macro_precision", "macro_recall", "accuracy"}
    names = averages | {f"{name}_{end}" for name in averages for end in ("low", "high")} | {"n_images", "per_tissue"}
    metrics = result.metrics
    sets = {"judge", "colour", "filtered_judge", "filtered_colour", "untuned"}
    assert set(metrics) == names | sets | {"gate_gaming", "real_images", "realism", "copying", "calibration", "cost"}
    for name in sets:
        assert set(metrics[name]) == names
        assert set(metrics[name]["per_tissue"]) == set(SLUGS)
    assert {"raw", "accepted", "floor", "variety_lost", "extractor", "dimensions"} <= set(metrics["realism"])
    assert files.json_text("evaluation.json", metrics)


def test_every_set_is_scored_by_whom_it_says(result: evaluation.Evaluation):
    metrics = result.metrics
    assert metrics["filtered_judge"]["accuracy"] == 1.0
    assert metrics["untuned"]["accuracy"] == metrics["colour"]["accuracy"] == pytest.approx(1 / 9, abs=1e-6)
    assert metrics["judge"]["accuracy"] == pytest.approx(24 / 36, abs=1e-6)
    assert metrics["gate_gaming"]["difference"] == pytest.approx(metrics["macro_f1"] - metrics["judge"]["macro_f1"], abs=2e-6)
    assert metrics["gate_gaming"]["low"] <= metrics["gate_gaming"]["difference"] <= metrics["gate_gaming"]["high"]
    assert metrics["real_images"]["judge"] == {"val": 1.0, "test": 1.0}


def test_cost_counts_attempts(result: evaluation.Evaluation):
    cost = result.metrics["cost"]
    assert cost["attempts_per_accepted"] == 1.25 and cost["shortfall"] == 0
    assert cost["filled_after"] == {"1": 0.75, "2": 1.0}
    assert cost["per_tissue"]["mucus"] == {"attempts_per_accepted": 1.25, "shortfall": 0}


def test_no_accepted_images_is_no_score(drawn: LabelledImages):
    seen, nothing = observed(drawn.labels), observed(drawn.labels[:0])
    result = evaluated(seen, nothing, nothing)
    metrics = result.metrics
    assert metrics["filtered_judge"] == metrics["untuned"] == {"n_images": 0}
    assert set(metrics["realism"]["accepted"]["undefined"]) >= {"frechet_distance", "kernel_distance", "precision"}
    assert "share_below" in metrics["copying"]["accepted"]["pixels"]["undefined"]
    raw = metrics["realism"]["raw"]["per_tissue"]
    every = {name: np.mean([part[name] for part in raw.values()]) for name in ("recall", "coverage")}
    assert metrics["realism"]["variety_lost"] == pytest.approx(every, abs=1e-6), "all is lost where nothing is accepted"
    assert "cost" not in metrics
    assert files.json_text("evaluation.json", metrics)
    assert result.tables["per_tissue"]["accepted_judge_f1"].isna().all()
    assert result.tables["per_tissue"]["raw_gate_f1"].notna().all()
    assert result.tables["pairs"].empty
    with pytest.raises(DataError, match="raw images: none"):
        evaluated(nothing, seen, seen)


@pytest.mark.parametrize(
    "labels_", [np.zeros(1, int), np.zeros(5, int), np.repeat(np.arange(N), 1)], ids=["one image", "one tissue", "one of each"]
)
def test_few_images_have_scores_or_reasons(labels_: np.ndarray):
    metrics = evaluated(observed(labels_), observed(labels_), observed(labels_)).metrics
    assert files.json_text("evaluation.json", metrics)
    for name in ("raw", "accepted"):
        for part in (metrics["realism"][name], *metrics["realism"][name]["per_tissue"].values()):
            for score in ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"):
                assert (score in part) != (score in part.get("undefined", {}))


def test_equal_images_have_scores_or_reasons():
    labels_ = np.repeat(np.arange(N), 12)
    flat = observed(labels_, {name: np.zeros_like(labels_) for name in OBSERVERS})
    flat = Observed(
        flat.labels, flat.probabilities, np.ones((len(labels_), 6), np.float32), np.zeros((len(labels_), 4, 4, 3), np.uint8)
    )
    metrics = evaluated(flat, flat, flat).metrics
    assert files.json_text("evaluation.json", metrics)
    assert metrics["macro_f1"] == pytest.approx(2 / 90, abs=1e-6)


def test_floor_has_as_many_images_as_are_scored():
    seen = observed(np.repeat(np.arange(N), 5))
    realism = evaluated(seen, seen, seen).metrics["realism"]
    assert realism["floor"]["n_images"] == realism["raw"]["n_images"] == 45
    assert realism["floor"]["frechet_distance"] > 0


def test_a_copy_is_found_in_both_spaces():
    train = real()["train"]
    copies = Observed(train.labels, train.probabilities, train.features, np.asarray(train.pixels)[:, ::-1])
    fresh = observed(train.labels, seed=5)
    copied, new = evaluated(copies, copies, fresh), evaluated(fresh, fresh, fresh)
    for space in ("features", "pixels"):
        assert copied.metrics["copying"]["accepted"][space]["share_below"] == 1.0, space
        assert new.metrics["copying"]["accepted"][space]["share_below"] < 0.1, space
        assert (copied.pairs[space].images == copied.pairs[space].nearest).all()
    table = copied.tables["pairs"]
    assert (table["tissue"] == table["train_tissue"]).all() and table["distance"].max() < 1e-3


def test_tables_of_images_have_one_row_per_image(result: evaluation.Evaluation, drawn: LabelledImages):
    table = result.tables["raw"]
    assert list(table.columns) == ["tissue", "slot", "gate", "judge", "colour"]
    assert table["tissue"].tolist() == [SLUGS[tissue] for tissue in drawn.labels]
    assert table["gate"][0] == SLUGS[1]
    assert (table["tissue"] == table["gate"]).mean() == result.metrics["accuracy"]


def test_refused_raw_images(drawn: LabelledImages, by_gate: np.ndarray):
    refused = generated.refused(drawn, by_gate, SLUGS, most=3)
    for tissue, of_tissue in enumerate(refused):
        assert of_tissue.seen == (SLUGS[(tissue + 1) % N],)
        assert (of_tissue.images == drawn.images[tissue * PER_TISSUE]).all()


def test_attempts_of_another_set_are_refused(drawn: LabelledImages, attempts: pd.DataFrame):
    for other in (attempts.iloc[3:], attempts.iloc[::-1]):
        with pytest.raises(DataError, match="first attempts are not those of the 36 raw images"):
            generated.check_attempts("attempts.csv", other, drawn, drawn, SLUGS)
    with pytest.raises(DataError, match="accepted attempts are not those of the 35 accepted images"):
        short = LabelledImages(drawn.images[1:], drawn.labels[1:])
        generated.check_attempts("attempts.csv", attempts, drawn, short, SLUGS)


def test_attempts_of_other_tissues_are_refused(drawn: LabelledImages, attempts: pd.DataFrame):
    with pytest.raises(DataError, match="predicted: bone is not one of adipose"):
        strange = attempts.replace({"predicted": {"mucus": "bone"}})
        generated.check_attempts("attempts.csv", strange, drawn, drawn, SLUGS)


def test_sets_are_read_from_the_folders_of_the_stages(drawn: LabelledImages, attempts: pd.DataFrame, tmp_path: Path):
    for name in ("generated/raw", "generated/accepted", "untuned/raw"):
        archives.write_archive(tmp_path / f"{name}.npz", drawn.images, drawn.labels)
    files.write_csv(tmp_path / "generated" / "attempts.csv", attempts)
    read = tmp_path / "generated", tmp_path / "untuned"
    sets = generated.read_sets(*read, SLUGS, tmp_path / "unpacked")
    for images in (sets.raw, sets.accepted, sets.untuned):
        np.testing.assert_array_equal(images.images, drawn.images)
    assert sets.slots("raw").tolist() == sets.slots("accepted").tolist() == list(range(PER_TISSUE)) * N
    with pytest.raises(DataError, match=r"raw\.npz: label 8 is not one of 0 to 7"):
        generated.read_sets(*read, SLUGS[:8], tmp_path / "unpacked")


def test_slots_without_a_table_are_counted(drawn: LabelledImages):
    assert GeneratedSets(drawn, drawn, drawn).slots("raw").tolist() == list(range(PER_TISSUE)) * N


def test_table_of_attempts_is_read_or_refused(attempts: pd.DataFrame, tmp_path: Path):
    path = tmp_path / "attempts.csv"
    with pytest.raises(DataError, match="could not be read"):
        generated.read_attempts(path)
    path.write_text("")
    with pytest.raises(DataError, match="is not a table"):
        generated.read_attempts(path)
    path.write_text("tissue,slot\nadipose,0\n")
    with pytest.raises(DataError, match="has no column attempt, seed, predicted, confidence, accepted"):
        generated.read_attempts(path)
    files.write_csv(path, attempts)
    pd.testing.assert_frame_equal(generated.read_attempts(path), attempts, check_like=True, check_dtype=False)


def test_tables_and_plates_are_written_with_the_same_bytes(result, sheets, drawn, by_gate, tmp_path: Path):
    for name, pictures in (("a", sheets), ("b", draw(drawn, by_gate))):
        evaluation.write_tables(tmp_path / name, result)
        plates.write_plates(tmp_path / name / "plates", pictures)
    written = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    tables = ("accepted", "filled", "pairs", "per_tissue", "raw", "reliability", "thresholds")
    names = [*(f"{table}.csv" for table in tables), "plates/overview.png"]
    assert written == sorted(Path(name) for name in [*names, *(f"plates/{slug}.png" for slug in SLUGS)])
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    table = pd.read_csv(tmp_path / "a" / "per_tissue.csv", index_col="tissue")
    assert list(table.index) == list(SLUGS)
    assert table["raw_gate_recall"].tolist() == [0.75] * N
    assert len(table.columns) == 6 * 5


def test_plate_keeps_paper_and_text_clean(sheets: dict[str, Image.Image]):
    colours = {colour: count for count, colour in sheets["mucus"].convert("RGB").getcolors()}
    assert len(colours) <= 256
    assert colours[(255, 255, 255)] == max(colours.values())
    assert (31, 35, 40) in colours, "the ink of the title"


def test_plates_show_every_tissue(sheets: dict[str, Image.Image]):
    assert list(sheets) == [*SLUGS, "overview"]
    assert all(sheet.width < 1600 and sheet.height < 1100 for sheet in sheets.values())


@pytest.mark.parametrize("size", [28, 48, 64, 224])
def test_plate_of_any_image_size_has_the_same_frame(size: int):
    images = np.full((3, size, size, 3), 90, np.uint8)
    sheet = plates.draw_plate("mucus", [plates.Block("raw", images), plates.Block("rejected", images[:0])], CAPTION)
    blank = plates.draw_plate("mucus", [plates.Block("raw", images[:0]), plates.Block("rejected", images[:0])], CAPTION)
    assert sheet.size == blank.size
    cell = sheet.convert("RGB").getpixel((plates.MARGIN + plates.CELL // 2, plates.MARGIN + 72 + plates.CELL // 2))
    assert cell == pytest.approx((90, 90, 90), abs=4)


def test_plate_has_a_limit_and_no_note_without_its_image():
    images = np.zeros((100, 28, 28, 3), np.uint8)
    many = plates.draw_plate("mucus", [plates.Block("raw", images)], CAPTION)
    assert many.size == plates.draw_plate("mucus", [plates.Block("raw", images[:18])], CAPTION).size
    with pytest.raises(ValueError, match="2 notes for 100 images"):
        plates.Block("rejected", images, ("a", "b"))


@pytest.fixture
def generation() -> dict:
    counts = {"attempted": 5, "accepted": 4, "acceptance_rate": 0.8, "unfilled": 0}
    total = {"attempted": 45, "accepted": 36, "acceptance_rate": 0.8, "unfilled": 0}
    return {**total, "per_tissue": {slug: dict(counts) for slug in SLUGS}}


def test_summary_is_a_table_of_every_tissue(result: evaluation.Evaluation, generation: dict, tmp_path: Path):
    text = summary.summary_table(result.metrics, generation)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    for slug in SLUGS:
        assert rows[slug] == ["0.750", "0.750", "0.750", "80%", "0"]
    assert "untuned base by judge" in text
    empty = {**result.metrics, "filtered_judge": {"n_images": 0}}
    assert "accepted images by judge    no images" in summary.summary_table(empty, generation)


def test_summary_command(result: evaluation.Evaluation, generation: dict, tmp_path: Path):
    files.write_json(tmp_path / "e.json", result.metrics)
    files.write_json(tmp_path / "g.json", generation)
    call = ["--evaluation", str(tmp_path / "e.json"), "--generation", str(tmp_path / "g.json"), "--report", "r.html"]
    told = CliRunner().invoke(summary.main, call)
    assert told.exit_code == 0
    assert told.output.splitlines()[-1].endswith("overview.png, then open r.html in a browser")
    files.write_json(tmp_path / "g.json", {})
    wrong = CliRunner().invoke(summary.main, call)
    assert wrong.exit_code == 1
    assert len(wrong.output.splitlines()) == 1


def test_variety_is_lost_where_a_tissue_is_filtered_away():
    labels_ = np.repeat(np.arange(N), 12)
    raw, accepted = observed(labels_), observed(labels_[labels_ > 0])
    same = observed(labels_)
    lost = evaluated(raw, accepted, same).metrics["realism"]
    alone = lost["raw"]["per_tissue"][SLUGS[0]]["coverage"]
    assert alone > 0.2
    kept = [
        lost["raw"]["per_tissue"][slug]["coverage"] - lost["accepted"]["per_tissue"][slug]["coverage"] for slug in SLUGS[1:]
    ]
    assert lost["variety_lost"]["coverage"] == pytest.approx((alone + sum(kept)) / N, abs=1e-5)
    assert evaluated(raw, same, same).metrics["realism"]["variety_lost"] == {"recall": 0.0, "coverage": 0.0}
