"""The benchmark suite: its arithmetic, and every part against its peer on a tiny base."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
from click.testing import CliRunner
from conftest import ROOT, write_params

from benchmarks import (
    accepted,
    classifier_training,
    evaluation,
    generation,
    lora_training,
    prepare,
    profile_lora,
    quality,
    scaling,
)
from benchmarks.__main__ import PARTS, _with_earlier, main
from benchmarks.pairs import Bench, compared, fill, in_turns, markdown, write_results
from pathsynth.core.errors import DataError
from pathsynth.core.params import load_params, read_yaml


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_the_medians():
    row = compared("part", "peer", "images/s", {"ours": [10.0, 30.0, 20.0], "theirs": [5.0, 10.0, 20.0]})
    assert (row.ours, row.theirs, row.ratio, row.spread, row.n) == (20.0, 10.0, 2.0, "1.00 to 3.00", 3)
    assert markdown([row]).splitlines()[2] == "| part | peer | 20 | 10 | images/s | 2.00 (1.00 to 3.00) | 3 |"


def test_both_work_in_turns_and_the_first_turn_does_not_count():
    order: list[str] = []

    def contestant(name):
        def prepare():
            order.append(f"ready {name}")
            return lambda: order.append(name) or 1

        return prepare

    row = in_turns("part", "peer", "units/s", contestant("a"), contestant("b"), rounds=2)
    assert order == ["ready a", "a", "ready b", "b"] * 3
    assert row.n == 2


def test_every_part_runs_and_all_rows_are_in_one_file(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_training, "IMAGES", 12)
    monkeypatch.setattr(lora_training, "EPOCHS", 1)
    monkeypatch.setattr(generation, "IMAGES_PER_PROMPT", 1)
    monkeypatch.setattr(accepted, "IMAGES_PER_TISSUE", 1)
    monkeypatch.setattr(classifier_training, "IMAGES", 128)
    monkeypatch.setattr(evaluation, "IMAGES", 18)
    monkeypatch.setattr(prepare, "GIGABYTES", 0.005)
    # a gate that has learnt nothing sees the same tissue nearly everywhere, and the peer's images of it need some tries
    tree = read_yaml(finished / "params.yaml")
    tree["benchmarks"]["tiny"]["generation"]["max_attempts"] = 4
    write_params(tmp_path / "params.yaml", tree)
    (tmp_path / "models").symlink_to(finished / "models")
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: touch out, outs: [out]}}")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=tmp_path, check=True)
    out = tmp_path / "rows.json"
    args = ["--params", str(tmp_path / "params.yaml"), "--rounds", "2", "--out", str(out)]
    done = CliRunner().invoke(main, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    # two have two rows: time and memory, two commands
    assert len(content["rows"]) == len(PARTS) + 2
    for row in content["rows"].values():
        assert row["ours"] > 0 and row["theirs"] > 0 and row["n"] == 2
        assert row["part"] in done.output
    assert content["versions"]["torch"] and content["machine"] and content["lora"] == "r2"


def test_less_time_is_better():
    row = compared("part", "peer", "s", {"ours": [1.0, 2.0], "theirs": [4.0, 4.0]}, less_is_better=True)
    assert (row.ours, row.theirs, row.ratio, row.spread) == (1.5, 4.0, 3.0, "2.00 to 4.00")


def test_every_way_of_a_grid_is_scored(finished):
    params = load_params(finished / "params.yaml")
    grid = [quality.Way("DDIMScheduler", 1, 3.0), quality.Way("DPMSolverMultistepScheduler", 2, 1.0)]
    found = quality.measure(params, finished, "cpu", grid, 2)
    assert [(row["scheduler"], row["steps"], row["guidance"], row["n"]) for row in found] == [(*way, 18) for way in grid]
    for row in found:
        assert 0 <= row["macro_f1"] <= 1 and row["frechet_distance"] >= 0 and row["images_per_second"] > 0


def test_earlier_rows_stay_where_the_same_was_measured(finished, tmp_path):
    out, params = tmp_path / "rows.json", load_params(finished / "params.yaml")
    row = compared("earlier", "peer", "s", {"ours": [1.0, 1.0], "theirs": [2.0, 2.0]})
    write_results(out, params, {"rows": {"earlier": asdict(row)}})
    assert set(_with_earlier(out, params, {"new": row})) == {"earlier", "new"}
    other = params.model_copy(update={"seed": params.seed + 1})
    assert set(_with_earlier(out, other, {"new": row})) == {"new"}


def test_a_project_that_is_out_of_date_is_not_run(finished, tmp_path):
    shutil.copy(finished / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: touch out, outs: [out]}}")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    done = CliRunner().invoke(main, ["commands", "--params", str(tmp_path / "params.yaml"), "--out", str(tmp_path / "x.json")])
    assert done.exit_code == 1 and "run `make repro` first" in done.output
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("arguments", [["moon"], ["--rounds", "1"]])
def test_unknown_parts_and_too_few_rounds_are_refused(arguments):
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_missing_models_are_one_line(finished, tmp_path):
    shutil.copy(finished / "params.yaml", tmp_path)
    done = CliRunner().invoke(main, ["accepted", "--params", str(tmp_path / "params.yaml"), "--out", str(tmp_path / "x.json")])
    assert done.exit_code == 1 and "run the stage train_classifier first" in done.output
    assert not (tmp_path / "x.json").exists()


def test_the_page_shows_the_committed_results():
    page = ROOT / "docs" / "benchmarks.md"
    assert fill(page, ROOT / "benchmarks" / "results") == page.read_text()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"no marks", "has no marks"),
        (b"<!-- bench: a -->\n<!-- bench: b -->\n<!-- end -->", "without"),
        (b"<!-- bench: a -->\n<!-- end -->\n<!-- bench: b -->\n", "without"),
        (b"<!-- bench: ../a -->\n<!-- end -->", "has no marks"),
        (b"<!-- bench: a -->\n<!-- end -->", "could not be read"),
        (b"<!-- bench: b -->\n<!-- end -->", "holds no table"),
        (b"\xff", "could not be read"),
    ],
)
def test_a_page_that_cannot_be_filled_stays_as_it_is(text, fault, tmp_path):
    page = tmp_path / "page.md"
    page.write_bytes(text)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match=fault):
        fill(page, tmp_path)
    assert page.read_bytes() == text


@pytest.mark.parametrize("name", scaling.CASES)
def test_every_case_of_scaling_says_time_work_and_memory(name, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "LORA_STEPS", 1)
    count, params = 64, load_params(finished / "params.yaml")
    seconds, done, peak = scaling.case(name, count, Bench(params, finished, tmp_path, "cpu", 1))
    assert seconds > 0 and 0 < done <= count and peak > 50


def test_a_step_is_profiled_both_ways(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(profile_lora, "IMAGES", 12)
    monkeypatch.setattr(profile_lora, "STEPS", 2)
    done = CliRunner().invoke(
        profile_lora.main, ["--params", str(finished / "params.yaml"), "--out", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    for name in ("apart", "merged"):
        text = (tmp_path / f"lora_step_{name}.txt").read_text()
        assert "ms a step (median of 2)" in text and "convolution_backward" in text
