"""The evaluation: which set is scored by whom, its tables and its plates, on drawn phantoms and classifiers that do as told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from pathsynth import archives, evaluation, files, generated, labels, phantom, plates, scores, summary
from pathsynth.errors import DataError
from pathsynth.generated import GeneratedSets, LabelledImages

SLUGS = labels.SLUGS
N = len(SLUGS)
PER_TISSUE = 4
CAPTION = "synthetic images, a stand-in"


@dataclass
class Told:
    """A classifier that answers by the first pixel's red, wherein the test has written the answer."""

    shift: int = 0

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        return np.eye(N, dtype=np.float32)[(images[:, 0, 0, 0] + self.shift) % N]


def evaluated(raw: LabelledImages, accepted: LabelledImages, untuned: LabelledImages, *, shift: int = 0, slugs=SLUGS):
    """The evaluation of three sets by classifiers that do as told, the judge with a shift."""
    sets = GeneratedSets(raw, accepted, untuned, refused=())
    return evaluation.evaluate(sets, gate=Told(), judge=Told(shift), slugs=slugs, seed=1, resamples=100)


def marked(images: np.ndarray, answers: np.ndarray) -> np.ndarray:
    images = images.copy()
    images[:, 0, 0, 0] = answers
    return images


@pytest.fixture(scope="module")
def drawn() -> LabelledImages:
    images, y_true = phantom.draw_split(PER_TISSUE, 0, 32, "val")
    order = np.argsort(y_true.ravel(), kind="stable")
    return LabelledImages(images[order], y_true.ravel()[order])


@pytest.fixture(scope="module")
def raw(drawn: LabelledImages) -> LabelledImages:
    """Of each tissue the first image is taken for the next tissue."""
    first = np.arange(len(drawn.labels)) % PER_TISSUE == 0
    return LabelledImages(marked(drawn.images, (drawn.labels + first) % N), drawn.labels)


@pytest.fixture(scope="module")
def result(drawn: LabelledImages, raw: LabelledImages) -> evaluation.Evaluation:
    most = drawn.labels < N - 1
    accepted = LabelledImages(marked(drawn.images[most], drawn.labels[most]), drawn.labels[most])
    untuned = LabelledImages(marked(drawn.images, np.zeros(len(drawn.labels), np.uint8)), drawn.labels)
    return evaluated(raw, accepted, untuned)


@pytest.fixture(scope="module")
def attempts(raw: LabelledImages) -> pd.DataFrame:
    """The first attempts as the gate saw them, each refused one followed by a second attempt that is accepted."""
    rows = []
    for i, (tissue, seen) in enumerate(zip(raw.labels, raw.images[:, 0, 0, 0], strict=True)):
        row = {"tissue": SLUGS[tissue], "slot": i % PER_TISSUE, "seed": i, "confidence": 0.9}
        rows.append({**row, "attempt": 0, "predicted": SLUGS[seen], "accepted": int(tissue == seen)})
        if tissue != seen:
            rows.append({**row, "attempt": 1, "predicted": SLUGS[tissue], "accepted": 1})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def sheets(drawn: LabelledImages, raw: LabelledImages, attempts: pd.DataFrame) -> dict[str, Image.Image]:
    return draw(drawn, raw, attempts)


def draw(drawn: LabelledImages, raw: LabelledImages, attempts: pd.DataFrame) -> dict[str, Image.Image]:
    nothing = LabelledImages(drawn.images[:0], drawn.labels[:0])
    sets = GeneratedSets(raw, nothing, nothing, generated.refused_first_attempts(attempts, raw, SLUGS))
    return plates.draw_plates(sets, drawn, labels.PATHMNIST, SLUGS, CAPTION)


def test_headline_is_raw_by_gate(result: evaluation.Evaluation, raw: LabelledImages):
    metrics = result.metrics
    expected = scores.classification_scores(raw.labels, raw.images[:, 0, 0, 0].astype(int), SLUGS)
    assert {key: metrics[key] for key in expected} == expected
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1_low"] < metrics["macro_f1"] < metrics["macro_f1_high"]


def test_metrics_have_the_names_that_others_rely_on(result: evaluation.Evaluation):
    names = {
        "macro_f1",
        "macro_precision",
        "macro_recall",
        "accuracy",
        "macro_f1_low",
        "macro_f1_high",
        "n_images",
        "per_tissue",
    }
    metrics = result.metrics
    assert set(metrics) == names | {"judge", "filtered_judge", "untuned"}
    for name in ("judge", "filtered_judge", "untuned"):
        assert set(metrics[name]) == names
        assert set(metrics[name]["per_tissue"]) == set(SLUGS)
    assert files.json_text("evaluation.json", metrics)


def test_accepted_and_untuned_are_the_judges(result: evaluation.Evaluation):
    metrics = result.metrics
    assert metrics["filtered_judge"]["accuracy"] == 1.0
    assert metrics["filtered_judge"]["macro_f1"] == pytest.approx(8 / 9, abs=1e-6), "the unfilled tissue counts as 0"
    assert metrics["filtered_judge"]["n_images"] == PER_TISSUE * (N - 1)
    assert metrics["untuned"]["accuracy"] == pytest.approx(1 / 9, abs=1e-6)


def test_gate_and_judge_are_not_mixed_up(raw: LabelledImages):
    mixed = evaluated(raw, raw, raw, shift=3).metrics
    assert mixed["accuracy"] == 0.75
    assert [mixed[name]["accuracy"] for name in ("judge", "filtered_judge", "untuned")] == [0.0, 0.0, 0.0]


def test_no_accepted_images_is_no_score(raw: LabelledImages, tmp_path: Path):
    nothing = LabelledImages(raw.images[:0], raw.labels[:0])
    result = evaluated(raw, nothing, raw)
    assert result.metrics["filtered_judge"] == {"n_images": 0}
    assert result.per_tissue()["accepted_judge_f1"].isna().all()
    assert result.per_tissue()["untuned_judge_f1"].notna().all()
    with pytest.raises(DataError, match="raw images: none"):
        evaluated(nothing, raw, raw)


def test_sets_that_do_not_fit_the_tissues_are_refused(raw: LabelledImages):
    with pytest.raises(DataError, match="untuned images: label 9 is not one of 0 to 8"):
        evaluated(raw, raw, LabelledImages(raw.images, raw.labels + 1))
    with pytest.raises(DataError, match="gate: knows 9 tissues, expected 3"):
        evaluated(LabelledImages(raw.images, raw.labels % 3), raw, raw, slugs=SLUGS[:3])


def test_confusion_table_has_one_row_per_raw_image(result: evaluation.Evaluation, raw: LabelledImages):
    table = result.confusion("gate")
    assert list(table.columns) == ["actual", "predicted"]
    assert len(table) == len(raw.labels)
    assert table["actual"].tolist() == [SLUGS[tissue] for tissue in raw.labels]
    assert table["predicted"][0] == SLUGS[1]
    assert np.trace(result.confusion_counts("gate")) == (table["actual"] == table["predicted"]).sum()


def test_refused_first_attempts(raw: LabelledImages, attempts: pd.DataFrame):
    refused = generated.refused_first_attempts(attempts, raw, SLUGS)
    for tissue, of_tissue in enumerate(refused):
        assert of_tissue.seen == (SLUGS[(tissue + 1) % N],)
        assert (of_tissue.images == raw.images[tissue * PER_TISSUE]).all()


def test_attempts_of_another_set_are_refused(raw: LabelledImages, attempts: pd.DataFrame):
    for other in (attempts.iloc[3:], attempts.iloc[::-1]):
        with pytest.raises(DataError, match="not those of the 36 raw images"):
            generated.refused_first_attempts(other, raw, SLUGS)


def test_attempts_of_other_tissues_are_refused(raw: LabelledImages, attempts: pd.DataFrame):
    with pytest.raises(DataError, match="predicted: bone is not one of adipose"):
        generated.refused_first_attempts(attempts.replace({"predicted": {"mucus": "bone"}}), raw, SLUGS)


def test_sets_are_read_from_the_folders_of_the_stages(raw: LabelledImages, attempts: pd.DataFrame, tmp_path: Path):
    for name in ("generated/raw", "generated/accepted", "untuned/raw"):
        archives.write_archive(tmp_path / f"{name}.npz", raw.images, raw.labels)
    files.write_csv(tmp_path / "generated" / "attempts.csv", attempts)
    sets = generated.read_sets(tmp_path / "generated", tmp_path / "untuned", SLUGS)
    for images in (sets.raw, sets.accepted, sets.untuned):
        np.testing.assert_array_equal(images.images, raw.images)
    assert len(sets.refused) == N
    with pytest.raises(DataError, match=r"raw\.npz: label 8 is not one of 0 to 7"):
        generated.read_sets(tmp_path / "generated", tmp_path / "untuned", SLUGS[:8])


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


def test_tables_and_plates_are_written_with_the_same_bytes(result, sheets, drawn, raw, attempts, tmp_path: Path):
    for name, pictures in (("a", sheets), ("b", draw(drawn, raw, attempts))):
        evaluation.write_tables(tmp_path / name, result)
        plates.write_plates(tmp_path / name / "plates", pictures)
    written = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    names = ["confusion_gate.csv", "confusion_judge.csv", "per_tissue.csv", "plates/overview.png"]
    assert written == sorted(Path(name) for name in [*names, *(f"plates/{slug}.png" for slug in SLUGS)])
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    table = pd.read_csv(tmp_path / "a" / "per_tissue.csv", index_col="tissue")
    assert list(table.index) == list(SLUGS)
    assert table["raw_gate_recall"].tolist() == [0.75] * N
    assert len(table.columns) == 4 * 3


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
    assert "accepted images by judge  no images" in summary.summary_table(empty, generation)


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
