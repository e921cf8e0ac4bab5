"""`python -m pathsynth synthesize` and its Python functions: gate, provenance, redrawing, one-line errors."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, tiny_tree, write_params
from PIL import Image

from pathsynth.__main__ import main
from pathsynth.classifiers.model import load_classifier
from pathsynth.core.errors import PathsynthError
from pathsynth.core.io import compute_sha256
from pathsynth.data import labels
from pathsynth.synthesis import load_artifacts, redraw, synthesize
from pathsynth.synthesis.manifest import read_manifest, write_manifest
from pathsynth.synthesis.records import DISCLAIMER, SOURCE_TYPE, compute_pixels_sha256, read_record
from pathsynth.synthesis.stream import expand_prompt


def run(*args: object):
    return CliRunner().invoke(main, ["synthesize", *map(str, args)])


def copy_artifacts(finished: Path, folder: Path, **changes) -> list[object]:
    """Artifacts in separate places, as `dvc artifacts get` leaves them, and the options that name them."""
    shutil.copytree(finished / "models" / "lora", folder / "my lora")
    shutil.copytree(finished / "models" / "gate", folder / "my gate")
    base = load_artifacts(finished).base.pretrained_model_name_or_path
    write_params(folder / "my.yaml", tiny_tree(base) | changes)
    return ["--params", folder / "my.yaml", "--lora", folder / "my lora", "--gate", folder / "my gate"]


@pytest.fixture(scope="module")
def artifacts(finished):
    return load_artifacts(finished)


def test_artifacts_follow_device_in_params(finished, tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    _, params, *_ = copy_artifacts(finished, tmp_path / "cpu", device="cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert load_artifacts(finished).device.startswith("cuda")
    assert load_artifacts(finished, params).device == "cpu"
    # a program that calls pathsynth keeps its GPUs
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.fixture(scope="module")
def free(finished, tmp_path_factory) -> Path:
    """Twelve images of a text that names no tissue."""
    out = tmp_path_factory.mktemp("free") / "out"
    result = run("pink dots in the sun", "-n", 12, "--no-gate", "--artifacts", finished, "--out", out)
    assert result.exit_code == 0, result.output
    assert "12 images, not checked" in result.output and f"see {out / 'sheet.png'}" in result.output
    return out


@pytest.fixture(scope="module")
def gate(finished):
    return load_classifier(finished / "models" / "gate", "cpu", labels.SLUGS)


@pytest.fixture(scope="module")
def favourite(gate, free) -> str:
    """The tissue that the barely trained gate predicts most often."""
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(free.glob("image_*.png"))])
    return labels.PATHMNIST[np.bincount(gate.probabilities(images).argmax(axis=1), minlength=9).argmax()]


@pytest.fixture(scope="module")
def checked(finished, favourite, tmp_path_factory) -> Path:
    """Five images that the gate accepted."""
    out = tmp_path_factory.mktemp("checked") / "out"
    options = ["-n", 5, "--max-attempts", 200, "--seed", 3, "--artifacts", finished, "--out", out]
    result = run(f"pink dots with {favourite}", *options)
    assert result.exit_code == 0, result.output
    assert re.search(r"5 images accepted in \d+ attempts", result.output)
    return out


# --- provenance and gate


def test_free_text_is_marked_as_not_checked(free):
    records = read_manifest(free / "manifest.csv")
    assert [record.file for record in records] == [f"image_{number:04d}.png" for number in range(1, 13)]
    assert len({record.pixels_sha256 for record in records}) == 12
    assert {(record.checked, record.predicted, record.gate_sha256, record.tissue) for record in records} == {
        ("not checked", None, None, None)
    }
    for record in records:
        assert read_record(free / record.file) == record and record.prompt == "pink dots in the sun"
        with Image.open(free / record.file) as png:
            assert png.size == (32, 32) and compute_pixels_sha256(np.asarray(png)) == record.pixels_sha256
            assert png.info["Comment"] == "Not checked by any classifier."
    with Image.open(free / "sheet.png") as sheet:
        assert sheet.width > 300 and sheet.info["Title"] == "Contact sheet of 12 synthetic images"
        assert DISCLAIMER in sheet.info["Disclaimer"] and SOURCE_TYPE in sheet.info["XML:com.adobe.xmp"]


def test_gate_predicts_the_tissue_of_every_kept_image(finished, checked, gate):
    records = read_manifest(checked / "manifest.csv")
    assert len(records) == 5 == len(list(checked.glob("*_0*.png")))
    for record in records:
        probabilities = gate.probabilities(np.asarray(Image.open(checked / record.file))[None])[0]
        assert record.predicted == record.tissue == labels.SLUGS[probabilities.argmax()]
        assert record.confidence == pytest.approx(probabilities.max(), abs=1e-3) and record.checked == "by the gate"
        assert record.gate_sha256 == compute_sha256(finished / "models" / "gate" / "model.safetensors")


def test_rejected_images_are_reported_and_accepted_ones_kept(finished, favourite, tmp_path):
    other = "debris" if favourite != "debris" else "mucus"
    result = run(other, "-n", 3, "--max-attempts", 2, "--artifacts", finished, "--out", tmp_path / "out")
    assert result.exit_code == 1 and result.stderr.count("error: ") == 1
    unfilled = int(re.search(r"error: the gate rejected every attempt at (\d) of 3 images; try", result.stderr)[1])
    # without an image there is no folder, so that the command can be repeated
    assert (tmp_path / "out").exists() == (unfilled < 3)
    assert unfilled == 3 or len(read_manifest(tmp_path / "out" / "manifest.csv")) == 3 - unfilled


# --- redrawing


def test_manifest_redraws_the_same_files_whatever_is_selected_now(finished, checked, tmp_path):
    tree = tiny_tree()
    tree["benchmarks"]["tiny"]["base"] = {"pretrained_model_name_or_path": str(load_artifacts(finished).base_folder)}
    sampler = {"num_inference_steps": 5, "guidance_scale": 7.0, "scheduler": "DDIMScheduler", "negative_prompt": "dots"}
    tree["benchmarks"]["tiny"]["generation"]["sampler"] |= sampler
    seeds = dict.fromkeys(tree["seeds"], 99)
    options = copy_artifacts(finished, tmp_path, benchmarks=tree["benchmarks"], lora="r3", seeds=seeds)
    result = run("--again", checked / "manifest.csv", *options, "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert "5 of 5 images are bit-identical" in result.output
    for path in checked.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_png_redraws_itself(finished, free, tmp_path):
    result = run("--again", free / "image_0007.png", "--artifacts", finished, "--out", tmp_path / "again")
    assert "1 of 1 images are bit-identical" in result.output, result.output
    assert (tmp_path / "again" / "image_0007.png").read_bytes() == (free / "image_0007.png").read_bytes()


def test_records_of_several_prompts_keep_their_order(free, artifacts):
    mine, others = read_manifest(free / "manifest.csv"), synthesize("blue dots", 2, artifacts=artifacts, seed=4, gate=False)
    mixed = [mine[0], others.records[1], mine[1], others.records[0]]
    assert redraw(mixed, artifacts=artifacts).records == mixed


def test_gate_answer_is_dropped_if_the_pixels_differ(finished, checked, tmp_path):
    records = read_manifest(checked / "manifest.csv")
    changed = [records[0].model_copy(update={"pixels_sha256": "0" * 64, "made_with": "torch 1"}), *records[1:]]
    write_manifest(tmp_path / "manifest.csv", changed)
    result = run("--again", tmp_path / "manifest.csv", "--artifacts", finished, "--out", tmp_path / "out")
    assert "4 of 5 images are bit-identical; the CPU, GPU" in result.output
    first, *others = read_manifest(tmp_path / "out" / "manifest.csv")
    assert others == records[1:] and first.pixels_sha256 == records[0].pixels_sha256 and first.made_with == records[0].made_with
    assert first.checked == "not checked" and first.predicted is first.confidence is first.gate_sha256 is None


def test_other_weight_dtype_leaves_loaded_weights_unchanged(artifacts):
    first = synthesize("dots", artifacts=artifacts, gate=False)
    half = [record.model_copy(update={"weight_dtype": "bf16"}) for record in first.records]
    assert (redraw(half, artifacts=artifacts).images != first.images).any()
    assert (redraw(first.records, artifacts=artifacts).images == first.images).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tissue": "kidney"}, "image_0001.png: tissue: kidney is unknown; allowed: adipose"),
        (
            {"lora_sha256": "0" * 64},
            "image_0001.png: was generated with different weights: lora_sha256 000000000000, these have",
        ),
        ({"image_size": 64}, "records: must all have the same image size, found: 32, 64"),
    ],
)
def test_record_that_cannot_be_redrawn_is_one_line_error(change, message, free, artifacts):
    first, second, *_ = read_manifest(free / "manifest.csv")
    with pytest.raises(PathsynthError, match=message):
        redraw([first.model_copy(update=change), second], artifacts=artifacts)


# --- Python


def test_function_and_command_give_the_same_images(finished, checked):
    records = read_manifest(checked / "manifest.csv")
    result = synthesize(records[0].prompt, 5, artifacts=finished, seed=3, max_attempts=200)
    assert result.records == records and result.images.shape == (5, 32, 32, 3) and result.images.dtype == np.uint8
    assert [compute_pixels_sha256(image) for image in result.images] == [record.pixels_sha256 for record in records]


def test_bare_tissue_name_is_expanded_to_its_training_prompt(artifacts):
    smooth_muscle = labels.PATHMNIST.index("smooth muscle")
    for sentence in ("Smooth_Muscle", "smooth muscle", "an area with smooth muscle"):
        assert expand_prompt(sentence, artifacts) == ("an area with smooth muscle", smooth_muscle)
    assert expand_prompt("smooth muscle, blurred", artifacts) == ("smooth muscle, blurred", smooth_muscle)
    assert expand_prompt("no tissue at all", artifacts, gate=False) == ("no tissue at all", None)


def test_readme_example_runs(finished, monkeypatch):
    monkeypatch.chdir(finished)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = next(code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "pathsynth.synthesis" in code)
    exec(compile(example, "README.md", "exec"), names := {})
    assert names["made"].requested == 12 and len(names["made"].images) == len(names["made"].records)


# --- artifacts


def test_lora_decides_the_configuration(finished, artifacts, tmp_path):
    tree = tiny_tree(artifacts.base.pretrained_model_name_or_path)
    options = copy_artifacts(finished, tmp_path, lora="r3")
    found = load_artifacts(tmp_path, *options[1::2])
    assert (found.lora, found.prompts, found.seed) == ("r2", artifacts.prompts, 7)
    write_params(tmp_path / "my.yaml", tree | {"lora": "r3", "loras": {"r3": tree["loras"]["r3"]}})
    result = run("mucus", *options, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "was trained with settings that match no entry of `loras`" in result.stderr


def test_lora_of_an_earlier_version_or_with_other_records_is_recognized(finished, artifacts, tmp_path):
    lora = shutil.copytree(artifacts.lora_folder, tmp_path / "lora")
    recorded = json.loads((lora / "lora_config.json").read_text())
    # options that did not exist, and some that change no weight
    for name in ("tf32", "compile", "snapshots"):
        del recorded["training"][name]
    recorded |= {"fast_sampler": True, "validation": {"validation_steps": 7}}
    (lora / "lora_config.json").write_text(json.dumps(recorded))
    assert load_artifacts(finished, lora=lora).lora == "r2"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mucus"], "params.yaml: does not exist; pass the folder of the artifacts as --artifacts"),
        (["mucus", "--params", "here.yaml"], "models/lora: does not exist: no trained LoRA; train it with `make repro` or"),
    ],
)
def test_missing_artifact_is_one_line_error_with_remedy(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "here.yaml", tiny_tree())
    result = run(*args, "--out", "out")
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1


def test_gate_is_only_required_for_filtering(finished, tmp_path):
    options = [*copy_artifacts(finished, tmp_path)[:-1], tmp_path / "none"]
    result = run("mucus", *options, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "none: does not exist: no trained gate" in result.stderr
    assert run("mucus", "--no-gate", *options, "--out", tmp_path / "out").exit_code == 0
    assert read_manifest(tmp_path / "out" / "manifest.csv")[0].tissue == "mucus"


# --- output folder and requests


def test_empty_output_folder_may_be_the_working_directory_or_a_link(finished, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path(), tmp_path / "link"):
        result = run("dots", "--no-gate", "--artifacts", finished, "--out", out)
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in out.iterdir()) == ["image_0001.png", "manifest.csv", "sheet.png"]
    assert (tmp_path / "link").is_symlink()
    result = run("dots", "--no-gate", "--artifacts", finished, "--out", tmp_path)
    assert result.exit_code == 1 and result.stderr == f"error: {tmp_path}: is not empty; name a new folder\n"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "pass either a sentence or --again"),
        (["mucus", "--again", "m.csv"], 2, "pass either a sentence or --again"),
        (["mucus", "-n", "0"], 2, "0 is not in the range 1<=x<=10000"),
        (["a dog"], 1, "error: 'a dog' names no tissue; known labels: adipose, "),
        ([" "], 1, "error: ' ' is empty"),
        (["a\x08dog", "--no-gate"], 1, "contains control characters"),
        (["a\udcffdog", "--no-gate"], 1, "contains control characters or invalid UTF-8"),
        (["--again", "m.csv", "-n", "3"], 2, "--again redraws what is recorded: it takes no -n"),
        (["--again", "m.csv", "--no-gate"], 2, "--again redraws what is recorded: it takes no -n"),
        (["--again", "none.csv"], 1, "error: none.csv: could not be read: No such file or directory"),
    ],
)
def test_invalid_request_is_one_line_error(args, code, message, finished, tmp_path):
    result = run(*args, "--artifacts", finished, "--out", tmp_path / "out")
    assert result.exit_code == code and message in result.stderr
    assert not list(tmp_path.iterdir())


def test_example_of_the_lora_card_runs_with_stock_diffusers(finished, tiny_base, tmp_path, monkeypatch):
    card = (finished / "models" / "lora" / "README.md").read_text()
    example = next(code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "load_lora_weights" in code)
    (tmp_path / "models").mkdir()
    (tmp_path / "base").symlink_to(tiny_base)
    (tmp_path / "models" / "lora").symlink_to(finished / "models" / "lora")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), names := {})
    assert names["image"].size == (32, 32) and np.asarray(names["image"]).std() > 0
