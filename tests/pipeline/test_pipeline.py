"""The whole graph by DVC itself, tiny: twice, forced, and with another LoRA."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import dvc, tiny_tree, write_params
from dvc_cache import files_of, path_of
from test_plots import TABLES, unknown_fields

from pathsynth.evaluation.headline import COLUMNS


def _lock(folder: Path) -> bytes:
    return (folder / "dvc.lock").read_bytes()


def test_every_out_is_there_and_the_second_run_does_nothing(workspace):
    for out in ("data/generated/accepted.npz", "models/lora", "metrics/evaluation.json", "reports/report.html"):
        assert (workspace / out).exists()
    before = _lock(workspace)
    said = dvc(workspace, "repro")
    assert "Running stage" not in said and "up to date" in said
    assert _lock(workspace) == before


def test_every_plot_has_data_and_every_field_that_it_draws(workspace, tmp_path):
    plots = json.loads(dvc(workspace, "plots", "show", "--json", "--out", str(tmp_path)))
    assert not plots.get("errors")
    drawn = {path: views for path, views in plots["data"].items() if views}
    assert {path for path, _ in TABLES} <= set(drawn)
    assert {f"plots/curves/{name}/plots/metrics/train/loss.tsv" for name in ("gate", "judge", "lora")} <= set(drawn)
    for path, (view,) in drawn.items():
        if view["type"] == "vega":
            values = view["content"]["data"]["values"]
            assert values and "<DVC" not in json.dumps(view["content"]), path
            assert not unknown_fields(view["content"], set(values[0])) or path not in dict(TABLES), path


def test_experiments_are_shown_by_the_headline_and_by_nothing_else(workspace):
    columns = dvc(workspace, "exp", "show", "--csv").splitlines()[0].split(",")
    first = {"Experiment", "rev", "typ", "Created", "parent", "State", "Executor"}
    metrics = [name for name in columns[: columns.index("seed")] if name not in first]
    tissues = json.loads((workspace / "metrics" / "headline.json").read_text())["f1"]
    assert metrics == [*COLUMNS, *(f"f1.{slug}" for slug in tissues)]
    assert metrics[0] == "macro_f1" and len(metrics) < 25


@pytest.mark.slow
@pytest.mark.skipif("PATHSYNTH_FAULTS" not in os.environ, reason="for make faults; test_same compares all outs of another run")
def test_forced_run_gives_the_same_lock(workspace):
    before = _lock(workspace)
    said = dvc(workspace, "repro", "--force", "--no-run-cache")
    assert len(re.findall("Running stage", said)) == 12
    assert _lock(workspace) == before


@pytest.mark.slow
def test_another_lora_runs_only_what_depends_on_it_and_going_back_runs_nothing(workspace):
    before = _lock(workspace)
    write_params(workspace / "params.yaml", tiny_tree() | {"lora": "r3"})
    ran = re.findall(r"Running stage '([\w@]+)'", dvc(workspace, "repro"))
    assert set(ran) == {"train_lora", "generate_filtered", "measure_usefulness", "evaluate", "headline", "report"}
    write_params(workspace / "params.yaml", tiny_tree())
    # what is hashed nowhere cannot be restored
    assert re.findall(r"Running stage '([\w@]+)'", dvc(workspace, "repro")) == ["report"]
    assert _lock(workspace) == before


@pytest.mark.slow
def test_comparison_is_made_from_what_dvc_knows(workspace):
    for args in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "scores"]):
        subprocess.run(["git", *args], cwd=workspace, check=True)
    run = subprocess.run([sys.executable, "-m", "pathsynth.compare.experiments"], cwd=workspace, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "| `r2` | plain | 1 |" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a bit flipped", "cut short"])
def test_a_damaged_object_of_the_cache_is_made_anew(damage, workspace):
    before = _lock(workspace)
    path = workspace / ".dvc" / "cache" / path_of(files_of(workspace, "models/gate")["model.safetensors"])
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "a bit flipped" else content[:1000])
    shutil.rmtree(workspace / "models" / "gate")
    assert "Running stage 'train_classifier@gate'" in dvc(workspace, "repro")
    assert path.read_bytes() == (workspace / "models" / "gate" / "model.safetensors").read_bytes() == content
    assert _lock(workspace) == before


@pytest.mark.slow
def test_of_two_runs_at_once_one_ends_well_and_the_other_says_why_it_does_not(workspace):
    before = _lock(workspace)
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", "train_classifier@gate"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    runs = [subprocess.Popen(command, cwd=workspace, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert "Traceback" not in "".join(said)
    ended_well = [run.returncode == 0 for run in runs]
    assert any(ended_well)
    for well, text in zip(ended_well, said, strict=True):
        assert well or re.search("busy|Unable to acquire lock", text), text
    dvc(workspace, "repro")
    assert _lock(workspace) == before
