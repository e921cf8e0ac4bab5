"""`python -m pathsynth score`: any synthetic set through the same scores and report, and the cards of our own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import medmnist
import numpy as np
import pytest
from click.testing import CliRunner

from pathsynth.__main__ import main
from pathsynth.core.metric_files import read_details
from pathsynth.core.params import load_params
from pathsynth.data import labels
from pathsynth.generation import dataset_card as cards


def score(finished: Path, archive: Path, out: Path, *more: str):
    places = {"--prepared": "data/prepared", "--observed": "data/observed", "--models": "models", "--metrics": "metrics"}
    args = [word for option, place in places.items() for word in (option, str(finished / place))]
    args += ["--params", str(finished / "params.yaml"), "--scratch", str(out.parent / "scratch"), "--out", str(out), *more]
    return CliRunner().invoke(main, ["score", str(archive), *args], catch_exceptions=False)


def archive(path: Path, images: np.ndarray, y_true: np.ndarray, split: str = "train") -> Path:
    np.savez(path, **{f"{split}_images": images, f"{split}_labels": y_true.astype(np.uint8)[:, None]})
    return path


@pytest.fixture(scope="module")
def scored(finished, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("score") / "out"
    result = score(finished, finished / "data" / "generated" / "raw.npz", out, "--name", "our own raw images")
    assert result.exit_code == 0, result.output
    assert "macro F1" in result.output and "report.html" in result.output
    return out


def test_our_own_raw_images_have_the_scores_of_the_benchmark(finished, scored):
    own, again = (read_details(folder / "metrics" / "evaluation.json") for folder in (finished, scored))
    for key in ("macro_f1", "macro_f1_low", "per_tissue", "judge", "colour", "gate_gaming", "real_images", "calibration"):
        assert own[key] == again[key], key
    assert own["realism"]["raw"] == again["realism"]["raw"] and own["copying"]["raw"] == again["copying"]["raw"]
    assert "cost" not in again and again["untuned"] == {"n_images": 0}


def test_report_of_another_set_names_it_and_no_lora(finished, scored):
    page = (scored / "report.html").read_text()
    assert "our own raw images" in page and "lora_alpha" not in page
    assert not list(scored.parent.joinpath("scratch").iterdir())
    assert (scored / "metrics" / "usefulness.json").is_file()


def test_other_sizes_grey_images_and_splits_are_taken(finished, tmp_path):
    rng = np.random.default_rng(0)
    made = archive(tmp_path / "grey.npz", rng.integers(0, 256, (12, 28, 28), np.uint8), np.arange(12) % 3, "test")
    result = score(finished, made, tmp_path / "out", "--split", "test", "--no-usefulness")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "out" / "metrics" / "evaluation.json").read_text())
    assert scores["n_images"] == 12 and scores["per_tissue"]["mucus"]["recall"] == 0.0
    assert not (tmp_path / "out" / "metrics" / "usefulness.json").exists()


BAD = {
    "label": (lambda: (np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 9])), "label 9 is not one of 0 to 8"),
    "floats": (lambda: (np.zeros((2, 8, 8, 3), np.float32), np.array([0, 1])), "float32, not uint8"),
    "none": (lambda: (np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, int)), "none, expected at least one image"),
    "not square": (lambda: (np.zeros((2, 8, 9, 3), np.uint8), np.array([0, 1])), r"not (N, H, H, 3)"),
    "counts": (lambda: (np.zeros((2, 8, 8, 3), np.uint8), np.zeros(3, int)), "2 images but 3 labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sets_are_one_line_and_leave_nothing(case, finished, tmp_path):
    arrays, message = BAD[case]
    result = score(finished, archive(tmp_path / "set.npz", *arrays()), tmp_path / "out")
    assert result.exit_code == 1 and result.output.count("\n") == 1, result.output
    assert message in result.output and not (tmp_path / "out").exists()


def test_missing_parts_and_a_full_folder_are_one_line(finished, tmp_path):
    made = archive(tmp_path / "set.npz", np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]))
    for more, message in (
        (("--split", "val"), "has no array val_images"),
        (("--observed", str(tmp_path / "nowhere")), "card.json: could not be read"),
        (("--observed", str(finished / "data" / "prepared")), "run the stage observe_real"),
        (("--models", str(tmp_path / "nowhere")), "run the stage train_classifier first"),
    ):
        result = score(finished, made, tmp_path / "out", *more)
        assert result.exit_code == 1 and message in result.output and result.output.count("\n") == 1, result.output
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    result = score(finished, made, tmp_path / "out")
    assert result.exit_code == 1 and "is not empty; name a new folder" in result.output
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    result = score(finished, made, tmp_path / "set.npz" / "out")
    assert result.exit_code == 1 and result.output.count("\n") == 1, result.output
    result = score(finished, made, tmp_path / "out2", "--name", "x" * 81)
    assert result.exit_code == 2 and "has 81 characters; allowed: 1 to 80" in result.output


def test_synthetic_set_loads_in_medmnist(finished, tmp_path, monkeypatch):
    """As the card says: MedMNIST's loader expects the number of images of its own sets, which has to be told."""
    monkeypatch.setitem(medmnist.INFO["pathmnist"]["n_samples"], "train", 18)
    shutil.copy(finished / "data" / "generated" / "raw.npz", tmp_path / "pathmnist.npz")
    data = medmnist.PathMNIST(split="train", root=tmp_path, download=False)
    image, label = data[17]
    assert len(data) == 18 and image.size == (32, 32) and label.tolist() == [8]


def test_set_has_a_card_with_what_it_is(finished):
    beside = (finished / "data" / "generated" / "README.md").read_text()
    card = (finished / "reports" / "dataset_card.md").read_text()
    for text in (beside, card):
        assert "Synthetic, not for diagnosis" in text and "licence" in text and "seed 7" in text
        assert all(f"| {label} | an area with {label} |" in text for label in labels.PATHMNIST)
        assert str(finished) not in text
    counts = read_details(finished / "metrics" / "generation.json")
    assert f"{counts['accepted']} of {counts['attempted']} attempts" in card
    scores = read_details(finished / "metrics" / "evaluation.json")
    assert f"| raw images by the gate | {scores['macro_f1']:.3f} |" in card and "| value |" not in beside


def test_card_is_not_to_be_fooled(finished):
    assert cards.cell("a | b\n<script>") == "a \\| b &lt;script&gt;"
    assert cards.cell("![x](y) `z`") == "\\!\\[x\\](y) \\`z\\`"
    params = load_params(finished / "params.yaml")
    assert cards.base_name(params.benchmark.base) == "base"


def test_what_a_stage_took_is_logged_and_hashed_nowhere(finished):
    logs = {path.stem: json.loads(path.read_text()) for path in (finished / "logs" / "tiny" / "r2").glob("*.json")}
    assert set(logs) == {"train_lora", "generate_filtered", "measure_usefulness", "evaluate"}
    for stage, log in logs.items():
        assert log["stage"] == stage and log["seconds"] > 0 and log["peak_memory_mb"] > 50
        assert (log["benchmark"], log["lora"], log["seed"]) == ("tiny", "r2", 7) and "torch" in log["versions"]


def test_a_break_while_writing_leaves_what_was_there(finished, tmp_path, monkeypatch):
    from pathsynth.cli import score as score_command

    def broken(*_):
        raise KeyboardInterrupt

    made = archive(tmp_path / "set.npz", np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(score_command, "write_plates", broken)
    result = score(finished, made, tmp_path / "out", "--no-usefulness")
    assert result.exit_code != 0 and list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scratch", "set.npz"]

    def late(*args):
        (tmp_path / "out" / "other.txt").write_text("of another run")
        monkeypatch.undo()
        score_command.write_plates(*args)

    monkeypatch.setattr(score_command, "write_plates", late)
    result = score(finished, made, tmp_path / "out", "--no-usefulness")
    assert result.exit_code == 1 and "is not empty; name a new folder" in result.output, result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other.txt"]


def test_classes_without_images_are_told(finished, tmp_path):
    made = archive(tmp_path / "set.npz", np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]))
    result = score(finished, made, tmp_path / "out", "--no-usefulness")
    assert result.exit_code == 0, result.output
    assert "note: 7 of 9 classes have no images and count as 0: debris, lymphocytes" in result.output
    assert "7 of 9 tissues have no images" in (tmp_path / "out" / "report.html").read_text()
