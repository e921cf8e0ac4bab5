"""Every stage is killed and started again, or meets a full disk: the same outs, and files that are complete or absent.

PATHSYNTH_FAULTS=20 kills each stage at 20 random moments; otherwise each is killed once.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import preloaded
import psutil
import pytest
from conftest import ROOT, graph_stages, run_graph, stage_command, tiny_tree, write_params, write_yaml

from pathsynth.core.checkpoint import INTERVAL_VARIABLE
from pathsynth.core.params import read_yaml

pytestmark = pytest.mark.slow

MOMENTS = int(os.environ.get("PATHSYNTH_FAULTS", "0"))
# Exit codes of a stage that is ended by each signal, before and after its handler is installed.
SIGNALS = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {-signal.SIGTERM, 128 + signal.SIGTERM}}
STAGES = graph_stages()
# Stages with checkpoints, and what they print when they resume.
RESUMED = {
    "train_classifier@gate": "after epoch",
    "train_classifier@judge": "after epoch",
    "train_lora": "after step",
    "generate_filtered": "after",
    "generate_controls": "after",
    "measure_usefulness": "_synthetic: reusing the result of an earlier run",
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_base) -> Path:
    """A folder in which all stages have run, with enough steps and epochs for several checkpoints."""
    tree = tiny_tree(tiny_base)
    for role in ("gate", "judge"):
        tree["benchmarks"]["tiny"]["classifiers"][role]["epochs"] = 4
    tree["benchmarks"]["tiny"]["generation"].update(images_per_tissue=6, filter={"max_attempts": 3, "quota": 0.0})
    tree["loras"]["r2"]["training"] |= {"max_train_steps": 24, "snapshots": [8, 16]}
    tree["loras"]["r2"]["validation"] = {"validation_steps": 6, "validation_images": 1}
    # starts the fork server, which takes seconds
    first = _forkserver().Process(target=int)
    first.start()
    first.join()
    folder = tmp_path_factory.mktemp("undisturbed")
    run_graph(folder, write_params(folder / "params.yaml", tree))
    return folder


def _forkserver():
    """Starts processes that have imported all that stages need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    # the server imports what is preloaded before it gets this process's path
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return context


class Stage:
    """A stage in a copy of a folder in which all stages have run."""

    def __init__(self, name: str, undisturbed: Path, folder: Path):
        self.undisturbed, self.folder, self._messages = undisturbed, folder, folder / "messages.txt"
        shutil.copytree(undisturbed, folder, dirs_exist_ok=True)
        _, self.module, *self.args = stage_command(name, folder, folder / "params.yaml")
        entries = [entry for kind in ("outs", "metrics", "plots") for entry in STAGES[name].get(kind, [])]
        outs = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
        # the report is no out because it shows times, which are equal here
        self.outs = outs or ["reports/report.html"]

    def remove_outs(self) -> None:
        """Removes the outs, as DVC does before it starts a stage, and what earlier runs share."""
        shutil.rmtree(self.folder / "scratch" / "shared", ignore_errors=True)
        for out in self.outs:
            path = self.folder / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def start(self) -> BaseProcess:
        """Starts the stage, with a checkpoint at every opportunity."""
        given = (self.module, self.args, {INTERVAL_VARIABLE: "0"}, str(self._messages))
        run = _forkserver().Process(target=preloaded.run, args=given)
        run.start()
        return run

    def finish(self, run: BaseProcess) -> int | None:
        """Waits for the end of a run; its exit code."""
        run.join(120)
        return run.exitcode

    def messages(self) -> str:
        return self._messages.read_text() if self._messages.exists() else ""

    def files(self, folder: Path) -> dict[str, bytes]:
        """The files of the outs, by path."""
        paths = [path for out in self.outs for path in (folder / out, *(folder / out).rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def check_complete(self) -> None:
        """Asserts that every file is complete or absent; curves are written while they grow."""
        expected = self.files(self.undisturbed)
        for name, content in self.files(self.folder).items():
            assert ".part" in name or name.startswith("plots/curves") or content == expected[name], name

    def check_end(self) -> None:
        """Runs the stage to its end, and asserts that its outs are those of the undisturbed run."""
        assert self.finish(self.start()) == 0, self.messages()
        assert self.files(self.folder) == self.files(self.undisturbed)

    def has_checkpoint(self) -> bool:
        return bool(list(self.folder.glob("scratch/resume/*/times.json")))


@pytest.mark.parametrize("name", STAGES)
def test_killed_stage_ends_with_the_same_outs(name, undisturbed, tmp_path):
    stage, chance = Stage(name, undisturbed, tmp_path), random.Random() if MOMENTS else random.Random(name)
    longest = 0.4
    if MOMENTS:
        stage.remove_outs()
        started = time.monotonic()
        stage.check_end()
        longest = time.monotonic() - started
    for moment in range(max(1, MOMENTS)):
        at_checkpoint = name in RESUMED and moment == 0
        how = chance.choice(list(SIGNALS))
        stage.remove_outs()
        run = stage.start()
        if at_checkpoint:
            while run.is_alive() and not stage.has_checkpoint():
                time.sleep(0.002)
        else:
            time.sleep(chance.uniform(0, longest))
        with suppress(ProcessLookupError):
            os.kill(run.pid, how)
        assert stage.finish(run) in ({0} if not at_checkpoint else set()) | SIGNALS[how], stage.messages()
        assert "Traceback" not in stage.messages()
        stage.check_complete()
        stage.remove_outs()
        stage.check_end()
        assert not at_checkpoint or RESUMED[name] in stage.messages()
    assert not list((tmp_path / "scratch").glob("resume/*")), "a stage that succeeds removes its checkpoint"


@pytest.mark.long
def test_training_resumes_after_a_worker_was_killed(undisturbed, tmp_path):
    params = write_yaml(tmp_path / "params.yaml", read_yaml(undisturbed / "params.yaml") | {"processes": 2})
    stages = [Stage("train_lora", undisturbed, tmp_path / name) for name in ("whole", "killed")]

    def start(stage: Stage) -> subprocess.Popen:
        shutil.copy(params, stage.folder / "params.yaml")
        command = [sys.executable, "-m", stage.module, *stage.args]
        with open(stage.folder / "messages.txt", "w") as file:
            return subprocess.Popen(command, cwd=ROOT, stderr=file, env=os.environ | {INTERVAL_VARIABLE: "0"})

    for stage in stages:
        stage.remove_outs()
    whole, killed = stages
    assert start(whole).wait(90) == 0, whole.messages()
    run = start(killed)
    while run.poll() is None and not killed.has_checkpoint():
        time.sleep(0.01)
    psutil.Process(run.pid).children()[1].kill()
    assert run.wait(90) == 1 and "of 2 was killed by SIGKILL" in killed.messages()
    assert start(killed).wait(90) == 0 and RESUMED["train_lora"] in killed.messages()
    assert killed.files(killed.folder) == whole.files(whole.folder)


DISKS = {"full": ("size=4k", "No space left on device"), "read-only": ("size=1m", "Read-only file system")}
SOME = [("prepare", "read-only"), ("train_lora", "full"), ("generate_filtered", "full")]


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> Path:
        if subprocess.run(["mount", *options, folder], check=False, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("this machine does not allow mounts")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", folder], check=False, stderr=subprocess.DEVNULL)


def _redirect(stage: Stage, disk: Path) -> None:
    """Links the folders of a stage's outs and temporary files to a disk, and everything else in them back."""
    for name in sorted({out.split("/")[0] for out in stage.outs} | {"scratch", "logs"}):
        aside = stage.folder / f"{name}_aside"
        (stage.folder / name).mkdir(exist_ok=True)
        (stage.folder / name).rename(aside)
        (stage.folder / name).symlink_to(disk / name)
        (disk / name).mkdir()
        for path in aside.iterdir():
            if not any(f"{out}/".startswith(f"{name}/{path.name}/") for out in stage.outs):
                (disk / name / path.name).symlink_to(path)


def _restore(stage: Stage) -> None:
    for aside in stage.folder.glob("*_aside"):
        folder = aside.with_name(aside.name.removesuffix("_aside"))
        folder.unlink()
        aside.rename(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in STAGES for kind in DISKS] if MOMENTS else SOME)
def test_full_or_read_only_disk_is_one_line_error_and_the_next_run_succeeds(name, kind, disk, undisturbed, tmp_path):
    stage, (size, message) = Stage(name, undisturbed, tmp_path / "run"), DISKS[kind]
    _redirect(stage, disk("-t", "tmpfs", "-o", size, "tmpfs"))
    if kind == "read-only":
        disk("-o", "remount,ro")
    assert stage.finish(stage.start()) == 1, stage.messages()
    text = stage.messages()
    assert text.count("error: ") == 1 and message in text and "Traceback" not in text
    _restore(stage)
    stage.check_end()


def test_file_in_place_of_an_output_folder_is_one_line_error_and_stays(undisturbed, tmp_path):
    stage = Stage("train_classifier@gate", undisturbed, tmp_path)
    place = (tmp_path / stage.outs[0]).parent
    place.rename(tmp_path / "aside")
    place.write_text("mine")
    assert stage.finish(stage.start()) == 1
    assert f"error: {place}" in stage.messages() and "Traceback" not in stage.messages()
    assert place.read_text() == "mine"
