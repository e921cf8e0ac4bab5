"""Temporary folders and half-written files are removed however a command ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from pathsynth.core.errors import DataError
from pathsynth.core.scratch import resolve_scratch, temporary_folder

WRITES = """
import sys, time
from pathlib import Path
import click
from pathsynth.cli.options import run_as_command
from pathsynth.core.io import atomic_write
from pathsynth.core.scratch import temporary_folder

@click.command()
@run_as_command
def main():
    parent = Path(sys.argv[1])
    with temporary_folder(parent), atomic_write(parent / "out.json") as part:
        part.write_text("half")
        print("ready", flush=True)
        time.sleep(60)

main(args=[])
"""


@pytest.mark.parametrize(("number", "code", "message"), [
    (signal.SIGTERM, 143, "error: ended by SIGTERM"),
    (signal.SIGINT, 1, "Aborted!"),
])  # fmt: skip
def test_ended_command_removes_its_temporary_files_and_prints_one_line(number, code, message, tmp_path):
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(number)
        assert run.communicate(timeout=20)[1].strip() == message and run.returncode == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("parent", ["/dev/null", "/proc/none"], ids=["a file", "unwritable even for root"])
def test_unusable_parent_is_one_line_error(parent):
    with pytest.raises(DataError, match=r"a temporary folder could not be created: [\w ]+$"), temporary_folder(Path(parent)):
        pass


@pytest.mark.parametrize(("root", "working_folder", "expected"), [
    (".", ".", "scratch"),
    (".dvc/tmp/exps/tmp1", ".", "{}/scratch"),
    (".dvc/tmp/exps/standalone/tmp1", ".", "{}/scratch"),
    (".dvc/tmp/exps/tmp1", "sub", "{}/sub/scratch"),
    ("sub/.dvc/tmp/exps/tmp1/sub", ".", "{}/sub/scratch"),
    ("dvc/tmp/exps/tmp1", ".", "scratch"),
])  # fmt: skip
def test_experiments_in_temporary_copies_share_the_scratch_folder_of_their_repository(
    root, working_folder, expected, tmp_path, monkeypatch
):
    (tmp_path / root / ".dvc").mkdir(parents=True)
    (tmp_path / root / working_folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / root / working_folder)
    assert str(resolve_scratch(Path("scratch"))) == expected.format(tmp_path)
    assert resolve_scratch(Path("/disk/scratch")) == Path("/disk/scratch")
