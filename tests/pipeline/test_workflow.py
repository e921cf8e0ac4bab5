"""The workflows of pull requests: their scripts in a clone, and that they grant no rights to code of a pull request."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, git

from pathsynth.core.params import read_yaml

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.stem: read_yaml(path) for path in FILES}


def _steps(name: str) -> list[dict]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_action_is_pinned_and_no_secret_is_used(path):
    steps = _steps(path.stem)
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", step["uses"]) for step in steps if "uses" in step)
    assert "secrets." not in path.read_text()
    # a title or branch name could contain shell commands
    assert not [step for step in steps if "${{" in step.get("run", "")]


@pytest.mark.parametrize("name", ["check", "leaderboard"])
def test_workflow_that_runs_code_of_a_pull_request_can_only_read(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in WORKFLOWS[name]["on"]
    assert all(not step["with"]["persist-credentials"] for step in _steps(name) if "checkout" in step.get("uses", ""))


def test_workflow_that_can_comment_runs_no_code_of_a_pull_request():
    assert WORKFLOWS["comment"]["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert not [step for step in _steps("comment") if "run" in step or "checkout" in step["uses"]]


def test_submission_is_checked_by_the_code_of_the_base_branch():
    base, _, submission, *_ = steps = _steps("leaderboard")
    assert base["with"]["ref"] == "${{ github.base_ref }}" and "path" not in base["with"]
    assert submission["with"]["path"] == "pr" and "ref" not in submission["with"]
    # a script in pr/ would be the submission's
    assert [step["run"] for step in steps[-2:]] == [
        "make leaderboard LEADERBOARD_OPTIONS='--folder pr/leaderboard'", "git -C pr diff --exit-code -- leaderboard",
    ]  # fmt: skip


@pytest.mark.parametrize(("own", "code"), [
    ({}, 0), ({"tiny.json": "{}"}, 0), ({"tiny.json": "{ }"}, 1), ({"other.json": "{}"}, 1), (None, 1),
], ids=["without rules", "same rules", "edited", "added", "removed"])  # fmt: skip
def test_submission_cannot_change_the_rules(own, code, tmp_path):
    step = next(step["run"] for step in _steps("leaderboard") if step.get("run", "").startswith("list()"))
    for folder, files in (("leaderboard", {"tiny.json": "{}"} if own != {} else {}), ("pr/leaderboard", own or {})):
        (tmp_path / folder / "method").mkdir(parents=True)
        (tmp_path / folder / "method" / "scores.json").write_text(folder)
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    assert subprocess.run(["bash", "-e", "-c", step], cwd=tmp_path, stdout=subprocess.DEVNULL).returncode == code


def test_every_called_script_exists_and_is_executable():
    called = {word for step in _steps("check") for word in re.findall(r"\.ci/[a-z-]+", step.get("run", ""))}
    assert called == {".ci/run", ".ci/comment", ".ci/in-step"}
    assert all((ROOT / script).stat().st_mode & 0o100 for script in called)


@pytest.fixture
def branch(workspace, tmp_path) -> Path:
    """A clone of a finished repository without data and models, as for a pull request."""
    git(tmp_path, "clone", "-q", workspace, "clone")
    return tmp_path / "clone"


def _run(folder: Path, script: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"} | environment
    return subprocess.run([folder / ".ci" / script, *args], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_changed_parameter_without_a_run_is_out_of_step(branch):
    done = _run(branch, "in-step")
    assert done.returncode == 0, done.stdout
    # DVC exits with 0 for the first, and with an error for the second because its deps are missing
    for file, key in (("params.yaml", "training: 7"), ("configs/benchmarks/tiny.yaml", "repeats: 2")):
        path = branch / file
        text = path.read_text()
        assert key in text
        path.write_text(text.replace(key, f"{key}0"))
        done = _run(branch, "in-step")
        assert done.returncode == 1 and "dvc.lock is out of date" in done.stdout
        path.write_text(text)


@pytest.mark.slow
def test_comment_has_changed_scores_plots_and_contact_sheets(branch):
    assert _run(branch, "comment", "HEAD").stdout.count("has changed") == 3
    headline = branch / "metrics" / "headline.json"
    headline.write_text(re.sub(r'"macro_f1": [\d.]+', '"macro_f1": 0.987', headline.read_text()))
    table = branch / "plots" / "evaluation" / "raw.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    shutil.copy(branch / "plots/evaluation/plates/mucus.png", branch / "plots/evaluation/plates/debris.png")
    git(branch, "commit", "-qam", "other scores")
    done = _run(branch, "comment", "HEAD~1", RAW_URL="https://example.org/raw")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| metrics/headline.json *\| macro_f1 *\| [\d.]+ *\| 0.987 ", done.stdout)
    assert "- `plots/evaluation/raw.csv`" in done.stdout
    assert "![debris](https://example.org/raw/plots/evaluation/plates/debris.png)" in done.stdout
    assert (branch / "plots-diff" / "index.html").exists()
