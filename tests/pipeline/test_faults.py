"""Every stage is ended at any moment and started again: the same outs, and files that are whole or absent.

PATHSYNTH_FAULTS=20 tries twenty moments of each stage, others each time; without it one moment, always the same ones.
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import preloaded
import psutil
import pytest
from conftest import ROOT, graph_stages, run_graph, stage_command, tiny_tree, write_params

from pathsynth.core import checkpoint as resume
from pathsynth.core.params import read_yaml

MOMENTS = int(os.environ.get("PATHSYNTH_FAULTS", "0"))
SIGNALS = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130}
STAGES = graph_stages()
# Stages that take long where images are large; the others begin anew.
RESUMED = {
    "train_classifier@gate": "goes on after epoch",
    "train_classifier@judge": "goes on after epoch",
    "train_lora": "goes on after step",
    "generate_filtered": "goes on after",
    "generate_untuned@plain": "goes on after",
    "measure_usefulness": "was done by an earlier run",
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_base) -> Path:
    """A folder in which all stages have run, with more steps and epochs than elsewhere, so that there is something to lose."""
    tree = tiny_tree(tiny_base)
    for role in ("gate", "judge"):
        tree["benchmarks"]["tiny"]["classifiers"][role]["epochs"] = 4
    tree["benchmarks"]["tiny"]["generation"].update(images_per_tissue=6, max_attempts=3)
    tree["loras"]["r2"]["training"]["max_train_steps"] = 24
    # the server takes seconds to come up, and no stage is to be timed with it
    first = _forks().Process(target=int)
    first.start()
    first.join()
    folder = tmp_path_factory.mktemp("undisturbed")
    run_graph(folder, write_params(folder / "params.yaml", tree))
    return folder


def _forks():
    """Makes processes that have imported all that stages need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    # the server imports what is preloaded before it hears of this process's path
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return context


class Stage:
    """A stage in a copy of a folder in which all have run."""

    def __init__(self, name: str, whole: Path, folder: Path):
        self.whole, self.folder, self.said = whole, folder, folder / "said.txt"
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        _, module, *self._args = stage_command(name, folder, folder / "params.yaml")
        self._module = module
        entries = [entry for kind in ("outs", "metrics", "plots") for entry in STAGES[name].get(kind, [])]
        outs = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
        # the report is no out, as it shows times; those that are shown are the same here
        self.outs = outs or ["reports/report.html"]

    def start(self) -> multiprocessing.process.BaseProcess:
        """Starts it without its outs, and with every state saved."""
        self.without_outs()
        return self.again()

    def without_outs(self) -> None:
        """Takes its outs away, as DVC does before it starts a stage."""
        for out in self.outs:
            path = self.folder / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def again(self) -> multiprocessing.process.BaseProcess:
        given = (self._module, self._args, {resume.SECONDS_VARIABLE: "0"}, str(self.said))
        run = _forks().Process(target=preloaded.run, args=given)
        run.start()
        return run

    def by_command(self) -> subprocess.Popen:
        """Starts it as DVC does."""
        command = [sys.executable, "-m", self._module, *self._args]
        with open(self.said, "w") as file:
            return subprocess.Popen(command, cwd=ROOT, stderr=file, env=os.environ | {resume.SECONDS_VARIABLE: "0"})

    def seconds(self) -> float:
        """How long an undisturbed run takes."""
        start = time.monotonic()
        run = self.start()
        run.join(120)
        assert run.exitcode == 0, self.said.read_text()
        return time.monotonic() - start

    def files(self, folder: Path) -> dict[str, bytes]:
        """What is in the outs, by path."""
        paths = [path for out in self.outs for path in (folder / out, *(folder / out).rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def ends_well(self) -> None:
        """Runs it to its end and compares its outs with those of the undisturbed run."""
        run = self.again()
        run.join(120)
        assert run.exitcode == 0, self.said.read_text()
        assert self.files(self.folder) == self.files(self.whole)

    def outs_on(self, disk: Path) -> None:
        """Has the folders of its outs and of what it needs meanwhile on another disk, and sees there what else is in them."""
        for name in self._places():
            aside = self.folder / f"{name}_aside"
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name).rename(aside)
            (self.folder / name).symlink_to(disk / name)
            (disk / name).mkdir()
            for path in aside.iterdir():
                if not any(f"{out}/".startswith(f"{name}/{path.name}/") for out in self.outs):
                    (disk / name / path.name).symlink_to(path)

    def outs_back(self) -> None:
        """Takes the other disk away again."""
        for name in self._places():
            if (self.folder / f"{name}_aside").exists():
                (self.folder / name).unlink()
                (self.folder / f"{name}_aside").rename(self.folder / name)

    def _places(self) -> list[str]:
        return sorted({out.split("/")[0] for out in self.outs} | {"scratch", "logs"})

    def wait(self, run: multiprocessing.process.BaseProcess, until: Callable[[], bool]) -> None:
        """Waits until something holds, or the stage has ended."""
        while run.is_alive() and not until():
            time.sleep(0.002)


def _end(run: multiprocessing.process.BaseProcess, how: str, stage: Stage) -> bool:
    """Ends a stage; whether it was ended and had not come to its own end."""
    assert run.pid
    with suppress(ProcessLookupError):
        os.kill(run.pid, getattr(signal, how))
    run.join(60)
    text = stage.said.read_text() if stage.said.exists() else ""
    # a signal may come while click still reads the options, which it tells in its own way
    early = run.exitcode == 1 and text.strip() == "Aborted!"
    assert early or run.exitcode in (0, SIGNALS[how], -getattr(signal, how)), text
    assert run.exitcode not in (130, 143) or text.splitlines()[-1] == f"error: ended by {how}", text
    # Python tells of a signal that came while it let go of an object, and goes on
    heard = run.exitcode == -getattr(signal, how) or "Exception ignored in" in text
    assert "Traceback" not in text or heard, text
    for name, content in stage.files(stage.folder).items():
        assert ".part" in name or name.startswith("plots/curves") or content == stage.files(stage.whole)[name], name
    return run.exitcode != 0


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_is_ended_at_any_moment_ends_with_the_same_outs(name, undisturbed, tmp_path):
    stage = Stage(name, undisturbed, tmp_path)
    # without a measured time an early moment, at which no stage has come to its end
    chance, longest, ended = random.Random() if MOMENTS else random.Random(name), stage.seconds() if MOMENTS else 0.4, 0
    for moment in range(max(1, MOMENTS)):
        how = list(SIGNALS)[moment % len(SIGNALS)] if MOMENTS else chance.choice(list(SIGNALS))
        run = stage.start()
        time.sleep(chance.uniform(0, longest))
        ended += _end(run, how, stage)
        stage.ends_well()
    print(f"{name}: {ended} of {max(1, MOMENTS)} runs were ended before their end, within {longest:.1f} s")
    assert ended > MOMENTS // 4 or not MOMENTS
    assert not list((tmp_path / "scratch").glob("resume/*/")), "what has ended well is not kept"


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_stage_that_has_saved_something_goes_on_from_there(name, undisturbed, tmp_path):
    stage = Stage(name, undisturbed, tmp_path)
    for how in list(SIGNALS)[: 3 if MOMENTS else 1]:
        run = stage.start()
        stage.wait(run, lambda: bool(list((tmp_path / "scratch").glob("resume/*/times.json"))))
        assert _end(run, how, stage), "ended too early"
        stage.ends_well()
        assert RESUMED[name] in stage.said.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not MOMENTS, reason="three runs on two processes, for make faults")
def test_a_training_whose_worker_was_killed_goes_on_to_the_same_weights(undisturbed, tmp_path):
    whole = tmp_path / "whole"
    first = Stage("train_lora", undisturbed, whole)
    write_params(whole / "params.yaml", read_yaml(undisturbed / "params.yaml") | {"processes": 2})
    assert first.by_command().wait(90) == 0, first.said.read_text()
    stage = Stage("train_lora", whole, tmp_path / "killed")
    stage.without_outs()
    run = stage.by_command()
    while run.poll() is None and not list(stage.folder.glob("scratch/resume/*/times.json")):
        time.sleep(0.01)
    workers = psutil.Process(run.pid).children()
    workers[1].kill()
    assert run.wait(90) == 1 and "of 2 was killed by SIGKILL" in stage.said.read_text()
    assert stage.by_command().wait(90) == 0
    assert "goes on after step" in stage.said.read_text()
    assert stage.files(stage.folder) == stage.files(whole)


SOME_DISKS = [("prepare", "read-only"), ("train_lora", "full"), ("generate_filtered", "full"), ("report", "read-only")]
DISKS = {"full": ("size=4k", "No space left on device"), "read-only": ("size=1m", "Read-only file system")}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("kind", DISKS)
@pytest.mark.parametrize("name", STAGES)
def test_a_disk_that_takes_nothing_is_one_line_and_the_next_run_ends_well(name, kind, undisturbed, tmp_path):
    if not MOMENTS and (name, kind) not in SOME_DISKS:
        pytest.skip("for make faults")
    stage, disk, (size, said) = Stage(name, undisturbed, tmp_path / "run"), tmp_path / "disk", DISKS[kind]
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        stage.outs_on(disk)
        if kind == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        run = stage.again()
        run.join(120)
        text = stage.said.read_text()
        assert run.exitcode == 1, text
        assert text.count("error: ") == 1 and said in text and "Traceback" not in text
    finally:
        stage.outs_back()
        subprocess.run(["umount", disk], check=True)
    stage.ends_well()


@pytest.mark.parametrize("name", ["prepare", "train_classifier@gate"])
def test_a_file_where_a_folder_is_to_be_is_one_line_and_stays(name, undisturbed, tmp_path):
    stage = Stage(name, undisturbed, tmp_path)
    place = (tmp_path / stage.outs[0]).parent
    place.rename(tmp_path / "aside")
    place.write_text("mine")
    run = stage.again()
    run.join(120)
    text = stage.said.read_text()
    assert run.exitcode == 1 and f"error: {place}" in text and "Traceback" not in text
    assert place.read_text() == "mine"
