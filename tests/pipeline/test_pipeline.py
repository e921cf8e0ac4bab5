"""The whole graph run by DVC on tiny parameters: repeated, as experiments, and after damage."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import dvc, git
from dvc_cache import files_of, path_of
from test_plots import TABLES, unknown_fields

pytestmark = pytest.mark.slow

TINY = "configs/benchmarks/tiny.yaml"
AFTER_LORA = {
    "train_lora", "generate_filtered", "generate_controls", "measure_memorisation", "measure_usefulness", "evaluate",
    "headline", "report",
}  # fmt: skip
AFTER_SNAPSHOT = {"generate_filtered", "generate_controls", "measure_memorisation", "report"}
AFTER_SAMPLER = AFTER_LORA - {"train_lora", "measure_memorisation"}


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([\w@]+)'", output))


def lock_of(folder: Path) -> bytes:
    return (folder / "dvc.lock").read_bytes()


def test_second_run_does_nothing(own_workspace):
    for out in ("data/generated/accepted.npz", "models/lora", "metrics/evaluation.json", "reports/report.html"):
        assert (own_workspace / out).exists()
    before = lock_of(own_workspace)
    output = dvc(own_workspace, "repro")
    assert not stages_run(output) and "up to date" in output
    assert lock_of(own_workspace) == before


def test_every_plot_has_data_and_every_field_it_draws(own_workspace, tmp_path):
    plots = json.loads(dvc(own_workspace, "plots", "show", "--json", "--out", str(tmp_path)))
    assert not plots.get("errors")
    drawn = {path: views for path, views in plots["data"].items() if views}
    assert {path for path, _ in TABLES} <= set(drawn)
    assert {f"plots/curves/{name}/plots/metrics/train/loss.tsv" for name in ("gate", "judge", "lora")} <= set(drawn)
    for path, (view,) in drawn.items():
        if view["type"] == "vega":
            values = view["content"]["data"]["values"]
            assert values and "<DVC" not in json.dumps(view["content"]), path
            assert not unknown_fields(view["content"], set(values[0])) or path not in dict(TABLES), path


@pytest.mark.long
def test_forced_run_gives_the_same_lock(own_workspace):
    before = lock_of(own_workspace)
    assert len(stages_run(dvc(own_workspace, "repro", "--force", "--no-run-cache"))) == 12
    assert lock_of(own_workspace) == before


class TestExperiments:
    """In this order: later ones find the runs of the first in the run cache."""

    def test_another_lora_runs_only_what_depends_on_it_and_returning_runs_nothing(self, own_workspace):
        before = lock_of(own_workspace)
        assert stages_run(dvc(own_workspace, "exp", "run", "-n", "other", "-S", "lora=r3")) == AFTER_LORA
        # the report is not an out, so it cannot be restored
        assert stages_run(dvc(own_workspace, "exp", "run", "-n", "back", "-S", "lora=r2")) == {"report"}
        assert lock_of(own_workspace) == before

    def test_run_elsewhere_leaves_the_workspace_alone(self, own_workspace):
        before = (own_workspace / TINY).read_bytes(), lock_of(own_workspace)
        override = f"{TINY}:generation.sampler.guidance_scale=3.0"
        assert stages_run(dvc(own_workspace, "exp", "run", "--temp", "-n", "guided", "-S", override)) >= AFTER_SAMPLER
        assert ((own_workspace / TINY).read_bytes(), lock_of(own_workspace)) == before

    def test_grid_is_queued_and_run(self, own_workspace):
        queued = dvc(own_workspace, "exp", "run", "--queue", "-S", "lora=r2,r3", "-S", f"{TINY}:generation.filter.quota=0.0")
        assert queued.count("Queued experiment") == 2
        dvc(own_workspace, "exp", "run", "--run-all", "-j", "1")
        rows = list(csv.DictReader(dvc(own_workspace, "exp", "show", "--csv").splitlines()))
        assert {row["lora"] for row in rows if row["typ"].startswith("branch")} == {"r2", "r3"}
        assert all(row["macro_f1"] for row in rows)

    def test_another_benchmark_is_selected_by_name(self, own_workspace):
        for folder in ("benchmarks", "prompts"):
            shutil.copy(own_workspace / "configs" / folder / "tiny.yaml", own_workspace / "configs" / folder / "other.yaml")
        git(own_workspace, "add", "configs")
        dvc(own_workspace, "exp", "run", "--queue", "-n", "elsewhere", "-S", "benchmark=other")
        rows = csv.DictReader(dvc(own_workspace, "exp", "show", "--csv").splitlines())
        assert {row["benchmark"] for row in rows if row["Experiment"] == "elsewhere"} == {"other"}
        dvc(own_workspace, "queue", "remove", "--all")

    def test_snapshot_is_scored_without_training_again(self, own_workspace):
        keep = "+loras.r2.0.training.snapshots=[1]"
        assert "train_lora" in stages_run(dvc(own_workspace, "exp", "run", "--temp", "-n", "kept", "-S", keep))
        early = ["-S", keep, "-S", f"{TINY}:generation.snapshot=1"]
        ran = stages_run(dvc(own_workspace, "exp", "run", "--temp", "-n", "early", *early))
        assert "train_lora" not in ran and ran >= AFTER_SNAPSHOT

    def test_comparison_shows_all_configurations(self, own_workspace):
        command = [sys.executable, "-m", "pathsynth", "compare"]
        run = subprocess.run(command, cwd=own_workspace, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert {"r2", "r3", "r2 after 1 steps"} <= set(re.findall(r"^(r\d(?: after \d steps)?)\b", run.stdout, re.M))


class TestDamage:
    @pytest.mark.parametrize("damage", ["flipped bit", "truncated"])
    def test_damaged_object_of_the_cache_is_made_again(self, damage, own_workspace):
        before = lock_of(own_workspace)
        path = own_workspace / ".dvc" / "cache" / path_of(files_of(own_workspace, "models/gate")["model.safetensors"])
        content = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "flipped bit" else content[:1000])
        shutil.rmtree(own_workspace / "models" / "gate")
        assert "train_classifier@gate" in stages_run(dvc(own_workspace, "repro"))
        assert path.read_bytes() == (own_workspace / "models" / "gate" / "model.safetensors").read_bytes() == content
        assert lock_of(own_workspace) == before

    def test_of_two_runs_at_once_one_succeeds_and_the_other_names_the_reason(self, own_workspace):
        before = lock_of(own_workspace)
        command = [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", "train_classifier@gate"]
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        runs = [
            subprocess.Popen(command, cwd=own_workspace, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        errors = [run.communicate(timeout=120)[1] for run in runs]
        assert "Traceback" not in "".join(errors) and any(run.returncode == 0 for run in runs)
        for run, error in zip(runs, errors, strict=True):
            assert run.returncode == 0 or re.search("busy|Unable to acquire lock", error), error
        dvc(own_workspace, "repro")
        assert lock_of(own_workspace) == before
