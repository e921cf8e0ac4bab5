"""Every stage on tiny inputs, in the order of the graph, and its errors for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, SAMPLE, needs_sample, run_stage, tiny_tree, write_params

from pathsynth.__main__ import main
from pathsynth.core import devices
from pathsynth.core.metric_files import read_details
from pathsynth.sources import phantom

# outputs


def test_evaluation_scores_all_sets(finished):
    scores = read_details(finished / "metrics" / "evaluation.json")
    sets = scores["sets"]
    assert list(sets) == ["raw", "accepted", "untuned", "paraphrased", "val", "test"]
    assert scores["duplicates"] == json.loads((finished / "data" / "prepared" / "card.json").read_text())["duplicates"]
    for each in sets.values():
        assert {"gate", "judge", "open_set", "features", "structure", "copying"} <= set(each) or each["n_images"] == 0
    gate = sets["raw"]["gate"]
    assert sets["raw"]["n_images"] == 18 and 0 <= gate["macro_f1_low"] <= gate["macro_f1_high"] <= 1
    assert set(gate["per_tissue"]["smooth_muscle"]) == {"precision", "recall", "f1", "f1_low", "f1_high"}
    memorisation = read_details(finished / "metrics" / "memorisation.json")
    assert memorisation["n_train"] == memorisation["n_val"] and 0 <= memorisation["lora"]["auc"] <= 1
    usefulness = read_details(finished / "metrics" / "usefulness.json")
    assert {"real", "synthetic", "real_and_synthetic", "gain"} <= set(usefulness["probe"]["test"])
    assert set(read_details(finished / "metrics" / "robustness.json")["judge"]) == {"clean", "jpeg", "stain", "blur"}


def test_generation_counts_match_table_and_archives(finished):
    import pandas as pd

    counts = read_details(finished / "metrics" / "generation.json")
    table = pd.read_csv(finished / "data" / "generated" / "attempts.csv")
    with (
        np.load(finished / "data" / "generated" / "accepted.npz") as accepted,
        np.load(finished / "data" / "generated" / "raw.npz") as raw,
        np.load(finished / "data" / "controls" / "untuned.npz") as untuned,
        np.load(finished / "data" / "controls" / "paraphrased.npz") as paraphrased,
    ):
        assert len(accepted["train_images"]) == counts["accepted"] == table["accepted"].sum()
        assert len(raw["train_images"]) == 18
        for control in (untuned, paraphrased):
            assert control["train_labels"].ravel().tolist() == [tissue for tissue in range(9) for _ in range(2)]
    assert counts["attempted"] == len(table) == 18 + (table["attempt"] > 0).sum()
    assert counts["unfilled"] == 18 - counts["accepted"]


def test_lora_folder_is_complete_and_has_no_absolute_path(finished, tiny_base):
    folder = finished / "models" / "lora"
    assert {path.name for path in folder.iterdir()} == {"pytorch_lora_weights.safetensors", "lora_config.json", "README.md"}
    card = (folder / "README.md").read_text()
    assert "Not for diagnosis" in card and str(tiny_base.parent) not in card
    assert "pathsynth export --format kohya --out r2.safetensors" in card and "the base it was trained on, `base`" in card


def test_curves_have_a_point_per_step_and_no_time(finished):
    lines = (finished / "plots/curves/gate/plots/metrics/val/macro_f1.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["step", "macro_f1"] and len(lines) == 2
    assert not list((finished / "plots" / "curves").rglob("dvc.yaml"))


def test_report_and_contact_sheets_are_complete(finished):
    html = (finished / "reports" / "report.html").read_text()
    assert "smooth muscle" in html and "<script" not in html
    sheets = {path.name for path in (finished / "plots" / "evaluation" / "plates").glob("*.png")}
    assert "lymphocytes.png" in sheets and len(sheets) >= 9


@needs_sample
def test_real_sample_is_prepared(tmp_path):
    tree = tiny_tree()
    tree["benchmarks"]["tiny"]["dataset"] = {
        "source": "medmnist_file", "labels": "pathmnist", "channels": 3, "image_size": 32,
        "path": str(SAMPLE), "md5": "1977e6b80f5c739417183be85ce0fce8",
    }  # fmt: skip
    params = write_params(tmp_path / "params.yaml", tree)
    result = run_stage("prepare", "--params", params, "--out", tmp_path / "prepared")
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "prepared" / "card.json").read_text())
    assert [card["splits"][split]["images"] for split in ("train", "val", "test")] == [801, 199, 502]
    assert "no exact or near copies of images within or between the splits\n" in result.output


def test_copies_of_training_images_among_test_images_are_a_warning(tmp_path):
    images, tissues = phantom.draw_split(2, 3, 32, "train")
    other = phantom.draw_split(2, 3, 32, "val")[0]
    arrays = {"train": images, "val": other, "test": images[:, ::-1]}
    archive = {f"{split}_images": rows for split, rows in arrays.items()} | {f"{split}_labels": tissues for split in arrays}
    np.savez(tmp_path / "leak.npz", **archive)
    tree = tiny_tree()
    source = {"source": "medmnist_file", "labels": "pathmnist", "channels": 3, "path": "leak.npz", "md5": None}
    tree["benchmarks"]["tiny"]["dataset"] = source | {"image_size": 32}
    params = write_params(tmp_path / "params.yaml", tree)
    result = run_stage("prepare", "--params", params, "--out", tmp_path / "prepared")
    warning = "warning: 18 of 18 test images are exact copies of training images: test scores will be too good\n"
    assert result.exit_code == 0 and result.stderr == warning


# errors


def _params(tmp_path, base="base", **generation):
    tree = tiny_tree(base)
    tree["benchmarks"]["tiny"]["generation"].update(generation)
    return write_params(tmp_path / "params.yaml", tree)


@pytest.mark.parametrize(("stage", "options"), [
    ("prepare", []),
    ("train_classifier", ["--role", "gate", "--prepared", "nowhere", "--metrics", "m.json", "--curves", "c"]),
    ("generate_filtered", ["--lora", "nowhere", "--gate", "nowhere", "--metrics", "m.json"]),
    ("generate_controls", ["--lora", "nowhere"]),
])  # fmt: skip
def test_missing_input_is_one_line_error(stage, options, tmp_path, tiny_base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = "none.yaml" if stage == "prepare" else _params(tmp_path, tiny_base)
    result = run_stage(stage, "--params", params, "--out", "out", *options)
    assert result.exit_code == 1
    # the device is named once in a process
    lines = [line for line in result.output.splitlines() if not line.startswith("device: ")]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_invalid_parameter_is_one_line_error(tmp_path):
    params = _params(tmp_path, images_per_tissue=0)
    result = run_stage("generate_controls", "--params", params, "--lora", "lora", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "generation.images_per_tissue: 0: input should be greater than 0" in result.output


@pytest.mark.parametrize("command", [["prepare"], ["check"], ["score", "set.npz"], ["anchors"]], ids=lambda words: words[0])
def test_missing_gpu_is_an_error_for_device_cuda(command, finished, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(finished)
    params = ["--params", write_params(tmp_path / "params.yaml", tiny_tree(tiny_base) | {"device": "cuda"})]
    out = ["--out", tmp_path / "out"]
    np.savez(tmp_path / "set.npz", train_images=np.zeros((1, 8, 8, 3), np.uint8), train_labels=np.zeros((1, 1), np.uint8))
    if command == ["prepare"]:
        result = run_stage("prepare", *params, *out)
    else:
        words = [*command, *params, *([] if command == ["check"] else [*out, "--scratch", tmp_path / "scratch"])]
        words = [str(tmp_path / word) if word == "set.npz" else str(word) for word in words]
        result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 1 and result.stderr.startswith("error: params: device: cuda, but "), result.output
    assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_device_cpu_hides_gpus_from_a_stage_and_its_children(finished, tiny_base, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    # torch sees a GPU unless the stage hides it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ["CUDA_VISIBLE_DEVICES"] != "")
    devices._report_device.cache_clear()
    result = run_stage(
        "measure_memorisation", "--params", write_params(tmp_path / "params.yaml", tiny_tree(tiny_base) | {"device": "cpu"}),
        "--prepared", finished / "data" / "prepared", "--lora", finished / "models" / "lora",
        "--out", tmp_path / "memorisation.json", "--logs", tmp_path / "logs",
    )  # fmt: skip
    devices._report_device.cache_clear()
    assert result.exit_code == 0 and "(params: device: cpu)\n" in result.stderr
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    log = json.loads((tmp_path / "logs" / "tiny" / "r2" / "measure_memorisation.json").read_text())
    assert log["device"].startswith("CPU") and log["peak_gpu_memory_mb"] is None
    expected = (finished / "metrics" / "memorisation.json").read_bytes()
    assert (tmp_path / "memorisation.json").read_bytes() == expected


def test_missed_quota_fails_the_stage_and_keeps_the_counts(finished, tmp_path, tiny_base):
    params = _params(tmp_path, tiny_base, filter={"max_attempts": 2, "quota": 1.0})
    result = run_stage(
        "generate_filtered", "--params", params, "--lora", finished / "models" / "lora",
        "--gate", finished / "models" / "gate", "--out", tmp_path / "out", "--metrics", tmp_path / "generation.json",
        "--scratch", tmp_path / "scratch", "--logs", tmp_path / "logs",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "error: too few images accepted: " in result.output and "quota" in result.output
    assert read_details(tmp_path / "generation.json")["unfilled"] > 0


def test_lora_targets_without_a_match_fail_the_stage(finished, tmp_path, tiny_base):
    tree = tiny_tree(tiny_base)
    tree["loras"]["r2"]["adapter"]["target_modules"] = ["to_nothing"]
    result = run_stage(
        "train_lora", "--params", write_params(tmp_path / "params.yaml", tree), "--prepared", finished / "data" / "prepared",
        "--out", tmp_path / "lora", "--metrics", tmp_path / "lora.json", "--curves", tmp_path / "curves",
        "--sheets", tmp_path / "sheets",
        "--scratch", tmp_path / "scratch", "--logs", tmp_path / "logs",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "to_nothing" in result.output and "error: " in result.output
    assert not (tmp_path / "lora").exists()


def test_help_of_stages_and_commands_imports_nothing_heavy():
    stages = sorted(f"stages.{path.stem}" for path in (ROOT / "stages").glob("*.py"))
    code = (
        "import importlib, sys\n"
        "from click.testing import CliRunner\n"
        f"for module in {[*stages, 'pathsynth.__main__']}:\n"
        "    output = CliRunner().invoke(importlib.import_module(module).main, ['--help']).output\n"
        "    assert 'Options:' in output, module\n"
        "print(sorted({'torch', 'diffusers', 'pandas', 'sklearn', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
