"""Temporary folders go with their process, however it ends, and one that is held is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from pathsynth.core import io as files
from pathsynth.core import scratch
from pathsynth.core.errors import DataError, ProcessError

HOLDS = """
import sys, time
from pathlib import Path
import click
from pathsynth.cli import reports_errors
from pathsynth.files import write_whole
from pathsynth.scratch import held, temporary_folder

@click.command()
@reports_errors
def main():
    parent = Path(sys.argv[1])
    with held(parent / "kept", patience=0), temporary_folder(parent), write_whole(parent / "out.json") as part:
        part.write_text("half")
        print("ready", flush=True)
        time.sleep(60)

main(args=[])
"""


@pytest.fixture
def running(tmp_path: Path):
    """A command that holds folders and is writing a file."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout and run.stdout.readline() == "ready\n"
    yield run
    run.kill()
    run.communicate()


@pytest.mark.parametrize(("how", "code", "said"), [
    (signal.SIGTERM, 143, "error: ended by SIGTERM\n"),
    (signal.SIGINT, 130, "error: ended by SIGINT\n"),
])  # fmt: skip
def test_a_command_that_is_ended_leaves_nothing_behind(how, code, said, running, tmp_path):
    running.send_signal(how)
    assert running.communicate(timeout=20)[1] == said and running.returncode == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "kept.lock"]


STUMBLES = """
import os, signal
import click
from pathsynth.cli import reports_errors
from pathsynth.errors import ModelError

@click.command()
@reports_errors
def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error:
        raise ModelError("base", "does not load") from error

main(args=[])
"""


def test_a_signal_that_a_library_takes_for_a_fault_is_told_as_what_it_is():
    done = subprocess.run([sys.executable, "-c", STUMBLES], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "error: ended by SIGTERM\n")


def test_what_a_killed_command_leaves_is_swept_by_the_next(running, tmp_path, monkeypatch):
    running.kill()
    running.wait()
    assert len(list(tmp_path.glob("pathsynth-*"))) == len(list(tmp_path.glob(".out.*.part.json"))) == 1
    with scratch.lock_folder(tmp_path / "kept", patience=0):
        pass
    monkeypatch.setattr(scratch, "GRACE", -1)
    with scratch.temporary_folder(tmp_path) as own:
        assert list(tmp_path.glob("pathsynth-*")) == [own]
    with files.atomic_write(tmp_path / "out.json") as part:
        part.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "kept.lock", "out.json"]


def test_what_lives_is_not_swept(running, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "GRACE", -1)
    (theirs,) = tmp_path.glob("pathsynth-*")
    (part,) = tmp_path.glob(".out.*.part.json")
    with scratch.temporary_folder(tmp_path), files.atomic_write(tmp_path / "out.json") as own:
        own.write_text("whole")
    assert theirs.is_dir() and part.is_file()
    with (
        pytest.raises(ProcessError, match="another run of the same stage is at work there"),
        scratch.lock_folder(tmp_path / "kept", 0),
    ):
        pass


def test_folders_of_users_are_not_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "GRACE", -1)
    mine = tmp_path / "pathsynth-results" / "precious.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with scratch.temporary_folder(tmp_path):
        pass
    assert mine.read_text() == "mine"


def test_a_clock_that_was_set_back_sweeps_nothing_and_breaks_nothing(running, tmp_path, monkeypatch):
    running.kill()
    running.wait()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with scratch.temporary_folder(tmp_path) as own:
        assert own.is_dir()
    assert len(list(tmp_path.glob("pathsynth-*"))) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="no folder can be made there: Permission denied"), scratch.temporary_folder(tmp_path):
        pass
