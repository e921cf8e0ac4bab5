"""`python -m pathsynth score`: scores and report of a set from any generator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import tiny_tree, write_params
from PIL import Image

from pathsynth.__main__ import main
from pathsynth.core.metric_files import read_details
from pathsynth.data.labels import SLUGS
from pathsynth.synthesis.manifest import read_manifest, write_manifest


def score(finished: Path, archive: Path, out: Path, *more: object):
    places = {"--prepared": "data/prepared", "--observed": "data/observed", "--models": "models", "--metrics": "metrics"}
    args = [word for option, place in places.items() for word in (option, finished / place)]
    args += ["--params", finished / "params.yaml", "--scratch", out.parent / "scratch", "--out", out, *more]
    return CliRunner().invoke(main, ["score", str(archive), *map(str, args)], catch_exceptions=False)


def write_set(path: Path, images: np.ndarray, labels: np.ndarray, split: str = "train") -> Path:
    np.savez(path, **{f"{split}_images": images, f"{split}_labels": labels.astype(np.uint8)[:, None]})
    return path


@pytest.fixture
def black(tmp_path) -> Path:
    return write_set(tmp_path / "set.npz", np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]))


@pytest.fixture(scope="module")
def scored(finished, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("score") / "out"
    result = score(finished, finished / "data" / "generated" / "raw.npz", out, "--name", "our own raw images")
    assert result.exit_code == 0, result.output
    assert "acro F1" in result.output and "report.html" in result.output
    return out


def test_raw_images_of_the_benchmark_get_their_own_scores(finished, scored):
    expected, scores = (read_details(folder / "metrics" / "evaluation.json") for folder in (finished, scored))
    for key in ("copying_control", "real_images", "calibration"):
        assert expected[key] == scores[key], key
    assert list(scores["sets"]) == ["raw", "accepted", "val", "test"]
    for name in ("raw", "val", "test"):
        assert expected["sets"][name] == scores["sets"][name], name
    assert expected["observers"]["gate_minus_judge"] == scores["observers"]["gate_minus_judge"]
    assert "cost" not in scores and "undefined" in scores["observers"]["filter_gain"]


def test_report_names_the_set_and_no_lora(scored):
    page = (scored / "report.html").read_text()
    assert "our own raw images" in page and "lora_alpha" not in page
    assert [path.name for path in scored.parent.joinpath("scratch").iterdir()] == ["shared"]
    assert (scored / "metrics" / "usefulness.json").is_file()


def test_other_sizes_grey_images_splits_and_missing_classes(finished, tmp_path):
    rng = np.random.default_rng(0)
    grey = write_set(tmp_path / "grey.npz", rng.integers(0, 256, (12, 28, 28), np.uint8), np.arange(12) % 3, "test")
    result = score(finished, grey, tmp_path / "out", "--split", "test", "--no-usefulness")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "out" / "metrics" / "evaluation.json").read_text())
    assert scores["sets"]["raw"]["n_images"] == 12 and scores["sets"]["raw"]["gate"]["per_tissue"]["mucus"]["recall"] == 0.0
    assert not (tmp_path / "out" / "metrics" / "usefulness.json").exists()
    assert "6 of 9 classes have no images and count as 0: lymphocytes, mucus" in result.output
    assert "6 of 9 " in (tmp_path / "out" / "report.html").read_text()


def write_folders(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (30, 20), "pink").save(root / folder / "1.png")
    return root


def test_folders_of_images_get_the_scores_of_the_same_archive(finished, scored, tmp_path):
    with np.load(finished / "data" / "generated" / "raw.npz") as raw:
        images, labels = raw["train_images"], raw["train_labels"][:, 0]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "set" / "val" / SLUGS[label].replace("_", " ").title() / f"{number:03}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    result = score(finished, tmp_path / "set", tmp_path / "out", "--split", "val", "--no-usefulness")
    assert result.exit_code == 0, result.output
    expected, scores = (
        read_details(folder / "metrics" / "evaluation.json")["sets"]["raw"] for folder in (scored, tmp_path / "out")
    )
    for name in ("gate", "judge"):
        assert expected[name]["per_tissue"] == scores[name]["per_tissue"]


@pytest.mark.parametrize("names", [("MUC", "MUS"), ("mucus", "Smooth Muscle")])
def test_class_folders_have_names_of_the_data_set_or_of_labels_and_may_lack_classes(names, finished, tmp_path):
    codes = ["ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"]
    tree = tiny_tree()
    tree["benchmarks"]["tiny"]["dataset"] = {
        "source": "folder", "labels": "pathmnist", "image_size": 32, "path": "nowhere", "folders": codes,
    }  # fmt: skip
    params = write_params(tmp_path / "params.yaml", tree)
    write_folders(tmp_path / "set", *names)
    result = score(finished, tmp_path / "set", tmp_path / "out", "--no-usefulness", "--params", params)
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "out" / "metrics" / "evaluation.json").read_text())
    assert scores["sets"]["raw"]["n_images"] == 2 and "7 of 9 classes have no images" in result.output
    assert "count as 0: adipose, background, debris, lymphocytes, normal_colon_mucosa" in result.output


def test_folder_of_synthesize_is_scored_by_its_manifest(finished, tmp_path):
    command = ["synthesize", "an area with mucus", "-n", "3", "--no-gate", "--artifacts", finished, "--out", tmp_path / "set"]
    made = CliRunner().invoke(main, [str(word) for word in command], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    result = score(finished, tmp_path / "set", tmp_path / "out", "--no-usefulness")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "out" / "metrics" / "evaluation.json").read_text())
    assert scores["sets"]["raw"]["n_images"] == 3
    records = read_manifest(tmp_path / "set" / "manifest.csv")
    write_manifest(tmp_path / "set" / "manifest.csv", [records[0], records[1].model_copy(update={"tissue": None})])
    result = score(finished, tmp_path / "set", tmp_path / "out2", "--no-usefulness")
    problem = f"manifest.csv: {records[1].file} shows free text, which is not a class of adipose, "
    assert result.exit_code == 1 and problem in result.output, result.output
    write_manifest(tmp_path / "set" / "manifest.csv", records)
    (tmp_path / "set" / "mucus_0002.png").unlink()
    result = score(finished, tmp_path / "set", tmp_path / "out2", "--no-usefulness")
    assert result.exit_code == 1 and "mucus_0002.png: could not be read: No such file" in result.output, result.output


INVALID_FOLDERS = {
    "nothing": ([], [], "has no folder adipose, background, "),
    "unknown class": (["mucus", "cat"], [], "cat: holds images, but is none of the folders adipose, "),
    "no such split": (["mucus"], ["--split", "val"], "has no folder val; without --split, all of its images are scored"),
    "other split": (["test/mucus"], [], "has no folder train; select one with --split: test"),
    "only other splits": (
        ["train/mucus", "test/mucus"],
        ["--split", "val"],
        "no folder val; select one with --split: train, test",
    ),
}


@pytest.mark.parametrize("case", INVALID_FOLDERS)
def test_invalid_folder_is_one_line_error(case, finished, tmp_path):
    folders, options, message = INVALID_FOLDERS[case]
    (tmp_path / "set").mkdir()
    result = score(finished, write_folders(tmp_path / "set", *folders), tmp_path / "out", *options)
    assert result.exit_code == 1 and result.output.count("\n") == 1, result.output
    assert message in result.output and not (tmp_path / "out").exists()


INVALID_SETS = {
    "label": ((2, 8, 8, 3), np.uint8, [0, 9], "label 9 is not in 0 to 8"),
    "labels from 1": ((9, 8, 8, 3), np.int64, range(1, 10), "labels start at 0, so subtract 1"),
    "floats": ((2, 8, 8, 3), np.float32, [0, 1], "float32, expected uint8"),
    "empty": ((0, 8, 8, 3), np.uint8, [], "train_images is empty; at least one image is needed"),
    "not square": ((2, 8, 9, 3), np.uint8, [0, 1], "not (N, H, H, 3)"),
    "counts": ((2, 8, 8, 3), np.uint8, [0, 0, 0], "2 images but 3 labels"),
}


@pytest.mark.parametrize("case", INVALID_SETS)
def test_invalid_set_is_one_line_error(case, finished, tmp_path):
    shape, dtype, labels, message = INVALID_SETS[case]
    result = score(finished, write_set(tmp_path / "set.npz", np.zeros(shape, dtype), np.array(labels)), tmp_path / "out")
    assert result.exit_code == 1 and result.output.count("\n") == 1, result.output
    assert message in result.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "val"], "has no array val_images"),
        (["--observed", "nowhere"], "card.json: could not be read"),
        (["--observed", "data/prepared"], "observe_real"),
        (["--models", "nowhere"], "train_classifier"),
    ],
)
def test_missing_input_is_one_line_error(options, message, finished, black, tmp_path):
    option, value = options
    result = score(finished, black, tmp_path / "out", option, value if option == "--split" else finished / value)
    assert result.exit_code == 1 and message in result.output and result.output.count("\n") == 1, result.output


def test_unusable_output_folder_or_name_is_one_line_error(finished, black, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    result = score(finished, black, tmp_path / "out")
    assert result.exit_code == 1 and "is not empty; name a new folder" in result.output
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    result = score(finished, black, black / "out", "--scratch", tmp_path / "scratch")
    assert result.exit_code == 1 and result.output.count("\n") == 1, result.output
    result = score(finished, black, tmp_path / "out2", "--name", "x" * 81)
    assert result.exit_code == 2 and "has 81 characters; allowed: 1 to 80" in result.output


def test_interrupted_command_leaves_nothing(finished, black, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    monkeypatch.setattr("pathsynth.cli.score.write_contact_sheets", interrupt)
    result = score(finished, black, tmp_path / "out", "--no-usefulness")
    assert result.exit_code != 0 and list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scratch", "set.npz"]


def test_stages_log_their_cost(finished):
    logs = {path.stem: json.loads(path.read_text()) for path in (finished / "logs" / "tiny" / "r2").glob("*.json")}
    assert set(logs) == {"train_lora", "generate_filtered", "measure_memorisation", "measure_usefulness", "evaluate"}
    for stage, log in logs.items():
        assert log["stage"] == stage and log["seconds"] >= 0 and log["peak_memory_mb"] > 50
        assert (log["benchmark"], log["lora"], log["seeds"]["training"]) == ("tiny", "r2", 7) and "torch" in log["versions"]
