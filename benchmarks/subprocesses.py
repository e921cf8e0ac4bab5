"""Whole commands, each in a process of its own: `prepare` against numpy, idle commands against minimal ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, Setup, alternate, make_row
from pathsynth.core.errors import ModelError, ProcessError
from pathsynth.core.io import write_text

GIGABYTES = 1.0
SIDE = 224
PREPARE = """
import sys
from pathlib import Path
from pathsynth.data.archives import read_archive
from pathsynth.data.prepared import write_prepared
splits = read_archive(Path(sys.argv[1]), 9)
write_prepared(Path(sys.argv[2]), "bench", [f"label {i}" for i in range(9)], splits, {}, 224)
"""
NUMPY = """
import sys
from pathlib import Path
import numpy as np
Path(sys.argv[2]).mkdir()
with np.load(sys.argv[1]) as archive:
    for key in archive.files:
        np.save(Path(sys.argv[2]) / f"{key}.npy", archive[key])
"""
# The peak resident set of the process; pages of files that the system caches are not part of it.
PRINT_PEAK = "\nprint([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])\n"
HELP = "import click; click.command()(click.option('--params')(lambda params: None))(['--help'])"
ONE_STAGE = "stages: {one: {cmd: echo > out, outs: [out]}}\n"


def compare_prepare(setup: Setup) -> list[Row]:
    """Seconds and peak memory of preparing an archive of GIGABYTES of pixels, against numpy's load and save."""
    archive, out = setup.scratch / "archive.npz", setup.scratch / "prepared"
    write_archive(archive, GIGABYTES)
    pairs = alternate(
        partial(_run_script, PREPARE, archive, out), partial(_run_script, NUMPY, archive, out), setup.rounds, warm_up=0
    )
    archive.unlink()
    name, peer = f"prepare of {GIGABYTES:g} GB", "numpy load and save"
    seconds, peaks = ([(ours[i], theirs[i]) for ours, theirs in pairs] for i in range(2))
    return [
        make_row(name, peer, "s", seconds, lower_is_better=True),
        make_row(f"{name}, peak memory", peer, "MB", peaks, lower_is_better=True),
    ]


def compare_commands(setup: Setup) -> list[Row]:
    """Seconds of commands that have nothing to do, in a project in which `make repro` has run.

    Raises:
        ModelError: the project is not up to date, so that `dvc repro` would run its stages.
    """
    root, minimal = setup.params.folder.resolve(), setup.scratch / "project"
    if not (root / "dvc.yaml").is_file():
        raise ModelError(root, "has no dvc.yaml; name the parameter file of a DVC project")
    dvc = [sys.executable, "-m", "dvc"]
    if json.loads(_run([*dvc, "status", "--json"], root)):
        raise ModelError(root, "has stages that are out of date; run `make repro` first")
    minimal.mkdir()
    write_text(minimal / "dvc.yaml", ONE_STAGE)
    _run([*dvc, "init", "--no-scm", "--quiet"], minimal)
    _run([*dvc, "repro"], minimal)
    stage = [sys.executable, "-m", "stages.train_lora", "--help"]
    package = Path(__file__).parents[1]
    idle = alternate(
        partial(_time_command, [*dvc, "repro"], root), partial(_time_command, [*dvc, "repro"], minimal), setup.rounds
    )
    help_texts = alternate(
        partial(_time_command, stage, package), partial(_time_command, [sys.executable, "-c", HELP], minimal), setup.rounds
    )
    return [
        make_row("dvc repro with nothing to do", "DVC with one stage", "s", idle, lower_is_better=True),
        make_row("--help of a stage", "click with one option", "s", help_texts, lower_is_better=True),
    ]


def write_archive(path: Path, gigabytes: float) -> None:
    """Writes an archive in MedMNIST's format whose images compress about as well as tissue: five bits of noise."""
    rng = np.random.default_rng(0)
    total = max(27, int(gigabytes * 1e9 / (SIDE**2 * 3)))
    val, test = max(9, total // 10), max(9, total // 15)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for split, count in {"train": total - val - test, "val": val, "test": test}.items():
            images = rng.integers(160, 192, (count, SIDE, SIDE, 3), np.uint8)
            labels = (np.arange(count) % 9).astype(np.uint8)[:, None]
            for key, array in {"images": images, "labels": labels}.items():
                with archive.open(f"{split}_{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array)


def _run_script(script: str, archive: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak resident memory in MB of a script that converts an archive."""
    start = time.perf_counter()
    peak = _run([sys.executable, "-c", script + PRINT_PEAK, str(archive), str(out)], Path.cwd())
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds, int(peak.split()[-1]) * 1024 / 1e6


def _time_command(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    _run(command, folder)
    return time.perf_counter() - start


def _run(command: list[str], folder: Path) -> str:
    """Runs a command and returns its output; raises a ProcessError if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ProcessError(f"{' '.join(command[1:3])} in {folder} failed: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout
