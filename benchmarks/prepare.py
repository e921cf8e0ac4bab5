"""Memory and time of `prepare` against numpy's own loading and saving: `python -m benchmarks.prepare --gigabytes 4`.

It makes an archive in MedMNIST's format of that size, has both read it and write .npy files, each in a process of its own, and
writes down peak memory and time. Pages of files that the system keeps while there is room do not count as ours; what counts is
the largest resident set that the kernel saw for the process (VmHWM).
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
from numpy.lib import format as npy

from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.files import write_json

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


@click.command()
@click.option("--gigabytes", type=click.FloatRange(0.01), default=1.0, show_default=True, help="Pixels in the archive.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds of each, in turns.")
@click.option("--folder", type=FOLDER, help="Where the archive goes, twice its size more; a temporary folder by default.")
@click.option("--out", type=FILE, default="benchmarks/results/prepare.json", show_default=True)
@reports_errors
def main(gigabytes, rounds, folder, out):
    """Measures both and prints one line."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        archive = Path(temporary) / "archive.npz"
        images = write_archive(archive, gigabytes)
        runs = {"ours": OURS, "theirs": THEIRS}
        measured = {name: [] for name in runs}
        for number in range(rounds):
            for name, script in runs.items():
                measured[name].append(run(script, archive, Path(temporary) / f"{name}{number}"))
    row = {
        "part": "prepare",
        "peer": "numpy load and save",
        "images": images,
        "pixels_gb": round(images * SIDE**2 * 3 / 1e9, 2),
    }
    for name, results in measured.items():
        row |= {
            f"{name}_s": round(statistics.median(seconds for seconds, _ in results), 1),
            f"{name}_peak_mb": round(max(peak for _, peak in results)),
        }
    row["ratio_s"] = round(row["theirs_s"] / row["ours_s"], 2)
    row["ratio_memory"] = round(row["theirs_peak_mb"] / row["ours_peak_mb"], 1)
    row["n"] = rounds
    versions = {"numpy": version("numpy"), "python": platform.python_version()}
    write_json(out, {"machine": f"{os.cpu_count()} CPU cores", "versions": versions, "rows": {"prepare": row}})
    click.echo("  ".join(f"{key}: {value}" for key, value in row.items()))


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


if __name__ == "__main__":
    main()
