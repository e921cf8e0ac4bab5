"""Other people's machines: killed experiments, a larger repository, users without a name, variables that clusters set."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, git

pytestmark = pytest.mark.slow

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _run(folder: Path, *command: object, **environment: str) -> subprocess.CompletedProcess:
    variables = os.environ | {"PATH": PATH} | environment
    return subprocess.run([*map(str, command)], cwd=folder, env=variables, capture_output=True, text=True)


def test_killed_experiment_in_a_temporary_copy_resumes(workspace, tmp_path):
    folder = shutil.copytree(workspace, tmp_path / "repository")
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(re.sub(r"max_train_steps: \d+", "max_train_steps: 400", text))
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "train_lora"]
    variables = os.environ | {"PATH": PATH, "PATHSYNTH_SAVE_SECONDS": "0"}
    with subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True, stderr=subprocess.DEVNULL) as run:
        until = time.monotonic() + 120
        while not list(folder.glob("scratch/resume/train_lora-*/training")):
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    again = _run(folder, *command)
    assert again.returncode == 0, again.stderr
    assert re.search(r"resuming after step \d+ of 400", again.stderr)
    assert not list(folder.glob("scratch/resume/*"))


@pytest.mark.parametrize("shared", [False, True], ids=["a DVC repository of its own", "the DVC repository of all"])
def test_project_in_a_folder_of_a_larger_repository_is_compared(shared, workspace, tmp_path):
    folder = shutil.copytree(workspace, tmp_path / "larger" / "sub", ignore=shutil.ignore_patterns(".git"))
    if shared:
        (folder / ".dvc").rename(tmp_path / "larger" / ".dvc")
    git(tmp_path / "larger", "init", "-q")
    git(tmp_path / "larger", "add", "-A")
    git(tmp_path / "larger", "commit", "-qm", "start")
    done = _run(folder, sys.executable, "-m", "pathsynth", "compare")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^r2 .* 18$", done.stdout, re.M)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change an owner")
def test_repository_of_another_user_is_one_line_error(workspace, tmp_path):
    folder = shutil.copytree(workspace, tmp_path / "repository")
    command = [sys.executable, "-m", "pathsynth", "compare"]
    for path in (folder, folder / ".git"):
        os.chown(path, 12345, 12345)
    # without the settings of the user, who may trust every folder
    done = _run(folder, *command, HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 1 and re.match("error: compare: .*not owned by current user", done.stderr)


def test_make_finds_the_name_of_the_user():
    name = pwd.getpwuid(os.geteuid()).pw_name
    # under `make test-all`, a second make would print the folder
    done = _run(ROOT, "env", "--unset=USER", "make", "--no-print-directory", "--eval=name: ; @echo $$USER", "name")
    assert done.stdout.strip() == name, done.stderr


def test_make_repro_writes_the_report_even_where_dvc_skips_its_stage():
    done = _run(ROOT, "make", "--no-print-directory", "--dry-run", "repro")
    commands = [line for line in done.stdout.splitlines() if re.search("dvc repro|stages.report|pathsynth summary", line)]
    assert [re.search(r"dvc repro|stages\.report|summary", line)[0] for line in commands] == [
        "dvc repro", "stages.report", "summary",
    ]  # fmt: skip


@pytest.mark.skipif(
    subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode != 0,
    reason="this system has no user namespaces for users",
)
def test_user_without_a_name_can_use_make(workspace, tmp_path):
    folder = shutil.copytree(workspace, tmp_path / "repository")
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    # newer than requirements.txt, because this environment must not be updated
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".ready":
            (folder / ".venv" / part.name).symlink_to(part)
    (folder / ".venv" / ".ready").touch()
    nameless = ["unshare", "--user", "--map-user=12345", "--map-group=12345", "env", "-i", "PATH=/usr/bin:/bin"]
    bare = _run(folder, *nameless, "HOME=/", sys.executable, "-m", "dvc", "status")
    assert "uid not found: 12345" in bare.stderr, "what happens without make"
    done = _run(folder, *nameless, "HOME=/", "make", "report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage" not in done.stdout and "Open reports/report.html" in done.stdout


def test_safe_path_of_python_hides_no_stage(workspace, tmp_path):
    folder = shutil.copytree(workspace, tmp_path / "repository")
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", "headline"]
    done = _run(folder, *command, PYTHONSAFEPATH="1")
    assert done.returncode == 0 and "Running stage 'headline'" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("prepare", "problem"), [
    (lambda _: None, "error: DVC needs a git repository. Clone this one instead of downloading a ZIP, or make one here:"),
    (lambda folder: git(folder, "init", "-q"), "error: this git repository has no commit yet: git add --all && git commit"),
], ids=["ZIP", "no commit"])  # fmt: skip
def test_missing_git_repository_is_said_before_the_installation(prepare, problem, tmp_path):
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    prepare(tmp_path)
    for target in ("setup", "repro", "test"):
        done = _run(tmp_path, "make", target, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))
        assert done.returncode == 2 and problem in done.stderr
    assert not (tmp_path / ".venv").exists()
