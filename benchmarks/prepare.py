"""`prepare` against numpy's own loading and saving: time and peak memory.

An archive in MedMNIST's format is made, and both read it and write .npy files, each in a process of its own. Pages of files
that the system keeps while there is room do not count; what counts is the largest resident set that the kernel saw for the
process (VmHWM).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from benchmarks.pairs import Bench, Row, compared, turns

GIGABYTES = 1.0
SIDE = 224
OURS = """
import sys
from pathlib import Path
from pathsynth.archives import read_archive
from pathsynth.prepared import write_prepared
splits = read_archive(sys.argv[1], 9)
write_prepared(Path(sys.argv[2]), "bench", [f"label {i}" for i in range(9)], splits, {}, 224)
"""
THEIRS = """
import sys
from pathlib import Path
import numpy as np
Path(sys.argv[2]).mkdir()
with np.load(sys.argv[1]) as archive:
    for key in archive.files:
        np.save(Path(sys.argv[2]) / f"{key}.npy", archive[key])
"""
WATCH = "\nprint([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])\n"


def measure(bench: Bench) -> list[Row]:
    """Seconds and megabytes for an archive of GIGABYTES of pixels."""
    archive = bench.scratch / "archive.npz"
    write_archive(archive, GIGABYTES)
    out = bench.scratch / "prepared-archive"
    found = turns(partial(run, OURS, archive, out), partial(run, THEIRS, archive, out), bench.rounds, warm_up=0)
    seconds = {name: [took for took, _ in values] for name, values in found.items()}
    peaks = {name: [peak for _, peak in values] for name, values in found.items()}
    archive.unlink()
    name, peer = f"prepare of {GIGABYTES:g} GB", "numpy load and save"
    return [
        compared(name, peer, "s", seconds, less_is_better=True),
        compared(f"{name}, peak memory", peer, "MB", peaks, less_is_better=True),
    ]


def write_archive(path: Path, gigabytes: float) -> int:
    """Writes an archive whose images compress as little as tissue does, a piece at a time; returns the number of images."""
    rng = np.random.default_rng(0)
    total = max(9 * 3, int(gigabytes * 1e9 / (SIDE**2 * 3)))
    counts = {"val": max(9, total // 10), "test": max(9, total // 15)}
    counts = {"train": total - sum(counts.values()), **counts}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for split, count in counts.items():
            labels = (np.arange(count) % 9).astype(np.uint8)[:, None]
            with archive.open(f"{split}_labels.npy", "w") as member:
                npy.write_array(member, labels)
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as member:
                shape = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE, 3)}
                npy.write_array_header_1_0(member, shape)
                for start in range(0, count, 64):
                    # five bits of noise on a tone: deflate takes it to about two thirds, as it does tissue
                    piece = rng.integers(160, 192, (min(64, count - start), SIDE, SIDE, 3), np.uint8)
                    member.write(piece.tobytes())
    return total


def run(script: str, archive: Path, out: Path) -> tuple[float, float]:
    """Seconds of a script on an archive, and its peak resident memory in MB."""
    start = time.perf_counter()
    command = [sys.executable, "-c", script + WATCH, str(archive), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds, int(done.stdout.split()[-1]) * 1024 / 1e6
