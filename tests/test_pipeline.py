"""The whole graph by DVC itself, tiny: twice, forced, and with another LoRA."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, tiny_tree, write_yaml

KEPT = ("pathsynth", "stages", "dvc.yaml")


def dvc(folder: Path, *args: str) -> str:
    """Runs dvc in `folder` and returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        [sys.executable, "-m", "dvc", *args], cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_base):
    """A repository with this graph and tiny params in which `dvc repro` has run once."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name in KEPT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    shutil.copytree(tiny_base, folder / "base")
    write_yaml(folder / "params.yaml", tiny_tree())
    (folder / ".dvcignore").write_text("__pycache__\n")
    (folder / ".gitignore").write_text("__pycache__\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    dvc(folder, "init", "-q")
    dvc(folder, "config", "core.analytics", "false")
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run([*git, "commit", "-qm", "start"], cwd=folder, check=True)
    dvc(folder, "repro")
    return folder


def _lock(folder: Path) -> bytes:
    return (folder / "dvc.lock").read_bytes()


def test_every_out_is_there_and_the_second_run_does_nothing(workspace):
    for out in ("data/generated/accepted.npz", "models/lora", "metrics/evaluation.json", "reports/report.html"):
        assert (workspace / out).exists()
    before = _lock(workspace)
    said = dvc(workspace, "repro")
    assert "Running stage" not in said and "up to date" in said
    assert _lock(workspace) == before


@pytest.mark.slow
def test_forced_run_gives_the_same_lock(workspace):
    before = _lock(workspace)
    said = dvc(workspace, "repro", "--force", "--no-run-cache")
    assert len(re.findall("Running stage", said)) == 11
    assert _lock(workspace) == before


@pytest.mark.slow
def test_another_lora_runs_only_what_depends_on_it_and_going_back_runs_nothing(workspace):
    before = _lock(workspace)
    write_yaml(workspace / "params.yaml", tiny_tree() | {"lora": "r3"})
    ran = re.findall(r"Running stage '([\w@]+)'", dvc(workspace, "repro"))
    assert set(ran) == {"train_lora", "generate_filtered", "measure_usefulness", "evaluate", "report"}
    write_yaml(workspace / "params.yaml", tiny_tree())
    # what is hashed nowhere cannot be restored
    assert re.findall(r"Running stage '([\w@]+)'", dvc(workspace, "repro")) == ["report"]
    assert _lock(workspace) == before


@pytest.mark.slow
def test_comparison_is_made_from_what_dvc_knows(workspace):
    for args in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "scores"]):
        subprocess.run(["git", *args], cwd=workspace, check=True)
    run = subprocess.run([sys.executable, "-m", "pathsynth.compare"], cwd=workspace, capture_output=True, text=True, check=True)
    assert "| `r2` | plain |" in run.stdout
