"""The benchmark harness, every part against its peer on a tiny base, and the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from click.testing import CliRunner
from conftest import ROOT, tiny_tree, write_params

from benchmarks import generation, quality, scaling, subprocesses, training
from benchmarks.__main__ import PARTS, _merge_earlier, main
from benchmarks.harness import Row, Setup, alternate, compare_rates, fill_tables, format_rows, make_row, write_results
from pathsynth.core.errors import DataError
from pathsynth.core.params import load_params, read_yaml, resolve_lora


def test_ratio_is_the_median_over_rounds_not_the_ratio_of_medians():
    row = make_row("part", "peer", "images/s", [(10.0, 5.0), (30.0, 10.0), (20.0, 20.0)])
    assert (row.ours, row.theirs, row.ratio, row.spread, row.n) == (20.0, 10.0, 2.0, "1.00 to 3.00", 3)
    assert format_rows([row]).splitlines()[2] == "| part | peer | 20 | 10 | images/s | 2.00 (1.00 to 3.00) | 3 |"


def test_ratio_of_times_favours_the_lower_one():
    row = make_row("part", "peer", "s", [(1.0, 4.0), (2.0, 4.0)], lower_is_better=True)
    assert (row.ours, row.theirs, row.ratio, row.spread) == (1.5, 4.0, 3.0, "2.00 to 4.00")


def test_contestants_alternate_and_the_warm_up_is_dropped():
    order: list[str] = []
    pairs = alternate(lambda: order.append("a") or len(order), lambda: order.append("b") or len(order), rounds=2)
    assert order == ["a", "b"] * 3 and pairs == [(3, 4), (5, 6)]


@pytest.mark.gpu
def test_gpu_rows_report_the_peak_memory_of_each_contestant():
    import torch

    def allocate(megabytes):
        return lambda: lambda: len(torch.zeros(megabytes, 10**6, dtype=torch.uint8, device="cuda"))

    row = compare_rates("part", "peer", "MB/s", allocate(100), allocate(300), rounds=2)
    assert row.ours_gpu_mb == pytest.approx(100, abs=10) and row.theirs_gpu_mb == pytest.approx(300, abs=10)


def test_sampler_has_the_number_formats_of_the_lora(tmp_path):
    path = ROOT / "params.yaml"
    for name, weight_dtype in (("paper_v9", "fp32"), ("sd_r16", "bf16")):
        lora = resolve_lora(path, read_yaml(path), name)
        params = replace(load_params(path), benchmark_name="pathmnist", lora_name=name, lora=lora)
        assert generation.read_sampler_settings(Setup(params, tmp_path, "cpu")).weight_dtype == weight_dtype


@pytest.fixture
def project(finished, tmp_path):
    """A DVC project of one finished stage beside the parameters and models of a tiny run."""
    tree = tiny_tree(read_yaml(finished / "configs" / "benchmarks" / "tiny.yaml")["base"]["pretrained_model_name_or_path"])
    # the untrained gate sees one class nearly everywhere, so that the peer needs several attempts
    tree["benchmarks"]["tiny"]["generation"]["filter"]["max_attempts"] = 4
    write_params(tmp_path / "params.yaml", tree)
    (tmp_path / "models").symlink_to(finished / "models")
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: touch out, outs: [out]}}")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def _run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.slow
def test_every_part_runs_and_all_rows_are_in_one_file(project, monkeypatch):
    monkeypatch.setattr(training, "LORA_IMAGES", 12)
    monkeypatch.setattr(training, "EPOCHS", 1)
    monkeypatch.setattr(training, "CLASSIFIER_IMAGES", 128)
    monkeypatch.setattr(generation, "IMAGES_PER_PROMPT", 1)
    monkeypatch.setattr(generation, "ACCEPTED_PER_CLASS", 1)
    monkeypatch.setattr(subprocesses, "GIGABYTES", 0.005)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=project, check=True)
    out = project / "rows.json"
    done = _run("--params", project / "params.yaml", "--rounds", 2, "--out", out)
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    # two parts have two rows: time and memory, and two commands
    assert len(content["rows"]) == len(PARTS) + 2
    for row in content["rows"].values():
        assert row["ours"] > 0 and row["theirs"] > 0 and row["n"] == 2 and row["part"] in done.output
    assert content["versions"]["torch"] and content["machine"] and content["lora"] == "r2"


def test_rows_of_other_parts_are_kept_if_parameters_are_the_same(finished, tmp_path):
    out, params = tmp_path / "rows.json", load_params(finished / "params.yaml")
    row = Row("earlier", "peer", 1.0, 2.0, "s", 2.0, "2.00 to 2.00", 2)
    write_results(out, params, {"rows": {"earlier": asdict(row)}})
    new = Row(**asdict(row) | {"part": "new"})
    assert set(_merge_earlier(out, params, [new])) == {"earlier", "new"}
    other = load_params(write_params(tmp_path / "params.yaml", tiny_tree() | {"lora": "r3"}))
    assert set(_merge_earlier(out, other, [new])) == {"new"}


def test_outdated_project_is_not_run(project):
    done = _run("commands", "--params", project / "params.yaml", "--out", project / "x.json")
    assert done.exit_code == 1 and "run `make repro` first" in done.output
    assert not (project / "out").exists() and not (project / "x.json").exists()


def test_missing_models_are_one_line_error(finished, tmp_path):
    shutil.copy(finished / "params.yaml", tmp_path)
    shutil.copytree(finished / "configs", tmp_path / "configs")
    done = _run("accepted_images", "--params", tmp_path / "params.yaml", "--out", tmp_path / "x.json")
    assert done.exit_code == 1 and len(done.output.splitlines()) == 2 and "train_classifier" in done.output


def test_quality_scores_every_entry_of_the_grid(finished, tmp_path):
    setup = Setup(load_params(finished / "params.yaml"), tmp_path, "cpu")
    grid = [quality.Variant("DDIMScheduler", 1, 3.0), quality.Variant("DPMSolverMultistepScheduler", 2, 1.0)]
    table = quality.measure(setup, grid, 2)
    assert [(row["scheduler"], row["steps"], row["guidance"], row["n"]) for row in table] == [(*entry, 18) for entry in grid]
    for row in table:
        assert 0 <= row["macro_f1"] <= 1 and 0 <= row["coverage"] <= 1 and row["images_per_second"] > 0


@pytest.mark.parametrize("name", scaling.CASES)
def test_scaling_cases_report_time_and_memory(name, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "LORA_STEPS", 1)
    row = scaling.run_case(name, 64, Setup(load_params(finished / "params.yaml"), tmp_path, "cpu"))
    assert row["time"] > 0 and row["peak MB"] > 50


def test_page_shows_the_committed_results():
    page = ROOT / "docs" / "benchmarks.md"
    assert fill_tables(page, ROOT / "benchmarks" / "results") == page.read_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no marks", "needs pairs"),
        ("<!-- bench: a -->\n<!-- bench: b -->\n<!-- end -->", "needs pairs"),
        ("<!-- bench: b -->\n<!-- end -->", "is not a results file"),
    ],
)
def test_page_that_cannot_be_filled_is_one_line_error(text, problem, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match=problem):
        fill_tables(page, tmp_path)
