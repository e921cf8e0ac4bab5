"""Every stage through click's runner on tiny inputs, in the order of the graph, and what it says to bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLE, run_stage, tiny_tree, write_params

from pathsynth.core.metric_files import read_details


def test_evaluation_is_of_all_sets(finished):
    scores = read_details(finished / "metrics" / "evaluation.json")
    assert scores["n_images"] == 18
    assert 0 <= scores["macro_f1_low"] <= scores["macro_f1_high"] <= 1
    for name in ("judge", "filtered_judge", "untuned"):
        assert {"macro_f1", "per_tissue"} <= set(scores[name]) or scores[name]["n_images"] == 0
    assert set(scores["per_tissue"]["smooth_muscle"]) == {"precision", "recall", "f1", "f1_low", "f1_high"}
    useful = read_details(finished / "metrics" / "usefulness.json")
    assert useful["repeats"] == 2 and {"real", "synthetic", "real_and_synthetic"} <= set(useful)
    damaged = read_details(finished / "metrics" / "robustness.json")
    assert set(damaged["judge"]) == {"clean", "jpeg", "stain", "blur"}


def test_generation_counts_match_table_and_archives(finished):
    import pandas as pd

    counts = read_details(finished / "metrics" / "generation.json")
    table = pd.read_csv(finished / "data" / "generated" / "attempts.csv")
    with (
        np.load(finished / "data" / "generated" / "accepted.npz") as accepted,
        np.load(finished / "data" / "generated" / "raw.npz") as raw,
    ):
        assert len(accepted["train_images"]) == counts["accepted"] == table["accepted"].sum()
        assert len(raw["train_images"]) == 18
    assert counts["attempted"] == len(table) == 18 + (table["attempt"] > 0).sum()
    assert counts["unfilled"] == 18 - counts["accepted"]
    with np.load(finished / "data" / "untuned" / "plain" / "raw.npz") as untuned:
        assert untuned["train_labels"].ravel().tolist() == [tissue for tissue in range(9) for _ in range(2)]


def test_lora_folder_is_complete_and_names_no_place(finished, tiny_base):
    assert {path.name for path in (finished / "models" / "lora").iterdir()} == {
        "pytorch_lora_weights.safetensors", "lora_config.json", "README.md"
    }  # fmt: skip
    card = (finished / "models" / "lora" / "README.md").read_text()
    assert "Not for diagnosis" in card
    assert str(tiny_base.parent) not in card


def test_curves_have_a_point_per_step_and_no_time(finished):
    text = (finished / "plots" / "curves" / "gate" / "plots" / "metrics" / "val" / "macro_f1.tsv").read_text()
    assert text.splitlines()[0].split("\t") == ["step", "macro_f1"]
    assert len(text.splitlines()) == 2
    assert not [path for path in (finished / "plots" / "curves").rglob("*") if path.name == "dvc.yaml"]


def test_report_and_plates_are_there(finished):
    html = (finished / "reports" / "report.html").read_text()
    assert "smooth muscle" in html and "<script" not in html
    plates = {path.name for path in (finished / "plots" / "evaluation" / "plates").glob("*.png")}
    assert "lymphocytes.png" in plates and len(plates) >= 9


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample of real PathMNIST images is not here")
def test_real_sample_goes_through_prepare(tmp_path, tiny_base):
    tree = tiny_tree(tiny_base)
    md5 = "e24ddd42c5aa24aa7d4f903636280e3a"
    tree["benchmarks"]["tiny"]["dataset"] = {
        "source": "medmnist_file",
        "labels": "pathmnist",
        "channels": 3,
        "image_size": 32,
        "path": str(SAMPLE),
        "md5": md5,
    }
    params = write_params(tmp_path / "params.yaml", tree)
    result = run_stage("prepare", "--params", params, "--out", tmp_path / "prepared")
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "prepared" / "card.json").read_text())
    assert [card["splits"][split]["images"] for split in ("train", "val", "test")] == [302, 85, 115]


def _params(tmp_path, base, **generation):
    tree = tiny_tree(base)
    tree["benchmarks"]["tiny"]["generation"].update(generation)
    return write_params(tmp_path / "params.yaml", tree)


BAD = {
    "no prepared folder": (
        "train_classifier",
        ["--role", "gate", "--prepared", "nowhere", "--out", "out", "--metrics", "m.json", "--curves", "c"],
    ),
    "no gate": (
        "generate_filtered",
        ["--lora", "nowhere", "--gate", "nowhere", "--out", "out", "--metrics", "m.json", "--gate-metrics", "g.json"],
    ),
    "no params": ("prepare", ["--out", "out"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_missing_input_is_one_line_and_exit_1(case, tmp_path, tiny_base):
    stage, args = BAD[case]
    params = tmp_path / "none.yaml" if case == "no params" else _params(tmp_path, tiny_base)
    args = [tmp_path / arg if arg in ("nowhere", "out", "m.json", "g.json", "c") else arg for arg in args]
    result = run_stage(stage, "--params", params, *args)
    assert result.exit_code == 1
    assert result.output.startswith("error: ") and result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_zero_images_wanted_is_refused_before_anything_is_loaded(tmp_path, tiny_base):
    params = _params(tmp_path, tiny_base, images_per_tissue=0)
    result = run_stage("generate_untuned", "--params", params, "--prompts", "plain", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "generation.images_per_tissue: 0: input should be greater than 0" in result.output


def test_unreachable_quota_fails_the_stage_and_keeps_the_counts(finished, tmp_path, tiny_base):
    params = _params(tmp_path, tiny_base, quota=1.0)
    result = run_stage(
        "generate_filtered", "--params", params, "--lora", finished / "models" / "lora", "--gate", finished / "models" / "gate",
        "--out", tmp_path / "out", "--metrics", tmp_path / "generation.json", "--gate-metrics",
        finished / "metrics" / "gate.json", "--logs", tmp_path / "logs",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "error: too few images accepted: " in result.output and "the quota is 100%" in result.output
    assert read_details(tmp_path / "generation.json")["unfilled"] > 0


def test_lora_targets_that_match_nothing_end_the_stage(finished, tmp_path, tiny_base):
    tree = tiny_tree(tiny_base)
    tree["loras"]["r2"]["adapter"]["target_modules"] = ["to_nothing"]
    result = run_stage(
        "train_lora", "--params", write_params(tmp_path / "params.yaml", tree), "--prepared", finished / "data" / "prepared",
        "--out", tmp_path / "lora", "--metrics", tmp_path / "lora.json", "--curves", tmp_path / "curves",
        "--scratch", tmp_path / "scratch",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "'to_nothing' matches no layer of the UNet" in result.output
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("stage", sorted(path.stem for path in (ROOT / "stages").glob("*.py")))
def test_help_names_the_options_and_loads_nothing_heavy(stage):
    code = (
        f"import sys; sys.argv = ['{stage}', '--help']\n"
        f"from stages.{stage} import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'diffusers', 'pandas', 'sklearn', 'torchvision'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "Options:" in out and out.splitlines()[-1] == "[]"
