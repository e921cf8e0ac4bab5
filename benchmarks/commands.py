"""What a user waits for though nothing is to be done: an idle `dvc repro`, and `--help` of a stage.

The peers are the least that the same tools can do: DVC on a project of one stage, and a command of click alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.pairs import Bench, Row, compared, turns
from pathsynth.core.errors import ModelError, ProcessError
from pathsynth.core.io import write_text

HELP = "import click; click.command()(click.option('--params')(lambda params: None))(['--help'])"
STAGES = "stages: {one: {cmd: echo > out, outs: [out]}}\n"


def measure(bench: Bench) -> list[Row]:
    """Seconds, in a project in which `make repro` has been run.

    Raises:
        ModelError: there is something to be done in it, which would be done here.
    """
    if not (bench.root / "dvc.yaml").is_file():
        raise ModelError(bench.root, "has no dvc.yaml; the parameters lie beside it")
    project, root = bench.scratch / "project", bench.root.resolve()
    project.mkdir()
    write_text(project / "dvc.yaml", STAGES)
    dvc = [sys.executable, "-m", "dvc"]
    _run([*dvc, "init", "--no-scm", "--quiet"], project)
    _run([*dvc, "repro"], project)
    if json.loads(_run([*dvc, "status", "--json"], root)):
        raise ModelError(root, "has stages that are out of date, so `dvc repro` would do something; run `make repro` first")
    stage = [sys.executable, "-m", "stages.train_lora", "--help"]
    package = Path(__file__).parents[1]
    return [
        _in_turns(
            "dvc repro with nothing to do", "DVC with one stage", ([*dvc, "repro"], root), ([*dvc, "repro"], project), bench
        ),
        _in_turns(
            "--help of a stage", "click with one option", (stage, package), ([sys.executable, "-c", HELP], project), bench
        ),
    ]


def _in_turns(part: str, peer: str, ours: tuple[list[str], Path], theirs: tuple[list[str], Path], bench: Bench) -> Row:
    def seconds(command: list[str], folder: Path) -> float:
        start = time.perf_counter()
        _run(command, folder)
        return time.perf_counter() - start

    return compared(
        part, peer, "s", turns(partial(seconds, *ours), partial(seconds, *theirs), bench.rounds), less_is_better=True
    )


def _run(command: list[str], folder: Path) -> str:
    """What a command prints.

    Raises:
        ProcessError: it fails.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ProcessError(f"{' '.join(command[1:])} in {folder} failed: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout
