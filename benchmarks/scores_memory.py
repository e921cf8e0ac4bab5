"""Memory and time of the scores of realism and copying as images grow in number: `python -m benchmarks.scores_memory`.

Features and pixels (32 x 32, in 8 views) are random numbers in files. Each number of generated images is scored in a process of
its own, against the same number of real ones, on one core. What counts is by how much the largest resident set that the kernel
saw for the process (VmHWM) exceeds that after the libraries' imports and a first small use of them.

Recall and the interval of the kernel distance compare every generated image with every other: at 50 000 they take most of the
time, which dimensions and references of these defaults keep to a few minutes.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.core.io import write_json, write_npy_in_pieces

TISSUES = 9
PIECE = 4096
PIXELS = (32, 32, 3)
SCRIPT = """
import json, sys, time
import numpy as np
from pathsynth import copying, realism
from pathsynth.rows import RowFile

def peak():
    return [int(line.split()[1]) * 1024 / 1e6 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]

def tissues(rows):
    return np.arange(len(rows)) % 9

def spent(start):
    return round(time.perf_counter() - start, 1)

def score(generated, real, val):
    # of each a pair of features and pixels
    start = time.perf_counter()
    reference = realism.Reference(real[0], tissues(real[0]), 5)
    realism.realism_scores(generated[0], tissues(generated[0]), reference, slugs="abcdefghi", seed=0)
    seconds = {"realism_seconds": spent(start)}
    for name, own, others, held_out in zip(("features", "pixels"), generated, real, val):
        start = time.perf_counter()
        distances = [copying.nearest(rows, others)[0] for rows in (own, held_out)]
        copying.copying_scores(distances[0], tissues(own), distances[1], tissues(held_out), "abcdefghi")
        seconds[f"copying_{name}_seconds"] = spent(start)
    return seconds

rng = np.random.default_rng(0)
score(*((rng.normal(size=(200, 16)), rng.integers(0, 256, (200, 32, 32, 3), np.uint8)) for _ in range(3)))
before = peak()
paths = sys.argv[1:]
seconds = score(*(tuple(map(RowFile, paths[i : i + 2])) for i in (0, 2, 4)))
print(json.dumps(seconds | {"peak_mb": round(peak() - before)}))
"""


@click.command()
@click.option("--images", type=click.IntRange(1), multiple=True, default=(500, 5000, 50000), show_default=True)
@click.option("--reference", type=click.IntRange(20), default=2000, show_default=True, help="Real images.")
@click.option("--dimensions", type=click.IntRange(1), default=256, show_default=True)
@click.option("--folder", type=FOLDER, help="Where the features go; a temporary folder by default.")
@click.option("--out", type=FILE, default="benchmarks/results/scores_memory.json", show_default=True)
@reports_errors
def main(images, reference, dimensions, folder, out):
    """Measures each number of images and prints a line for it."""
    rows = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        real = write_rows(Path(temporary) / "real", 0, reference, dimensions)
        val = write_rows(Path(temporary) / "val", 1, 500, dimensions)
        for count in images:
            generated = write_rows(Path(temporary) / f"generated{count}", 2, count, dimensions)
            row = {
                "part": "scores of realism and copying",
                "images": count,
                "reference": reference,
                "dimensions": dimensions,
                "features_mb": round(generated[0].stat().st_size / 1e6, 1),
                "pixels_mb": round(generated[1].stat().st_size / 1e6, 1),
                **measured(*generated, *real, *val),
            }
            rows[str(count)] = row
            click.echo("  ".join(f"{key}: {value}" for key, value in row.items()))
    packages = ("numpy", "scipy", "torch")
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    write_json(out, {"machine": f"1 of {os.cpu_count()} CPU cores", "versions": versions, "rows": rows})


def write_rows(stem: Path, seed: int, count: int, dimensions: int) -> tuple[Path, Path]:
    """Writes features float32 (count, dimensions), normal around each row's tissue's mean, and pixels uint8, evenly drawn."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(TISSUES, dimensions))
    starts = range(0, count, PIECE)

    def features() -> Iterator[np.ndarray]:
        for start in starts:
            rows = np.arange(start, min(count, start + PIECE))
            yield (means[rows % TISSUES] + rng.normal(size=(len(rows), dimensions))).astype(np.float32)

    def pixels() -> Iterator[np.ndarray]:
        for start in starts:
            yield rng.integers(0, 256, (min(count, start + PIECE) - start, *PIXELS), np.uint8)

    paths = stem.with_suffix(".features.npy"), stem.with_suffix(".pixels.npy")
    write_npy_in_pieces(paths[0], (count, dimensions), np.dtype(np.float32), features())
    write_npy_in_pieces(paths[1], (count, *PIXELS), np.dtype(np.uint8), pixels())
    return paths


def measured(*paths: Path) -> dict[str, float]:
    """Seconds of each part and additional peak memory in MB of the scores in a process of their own."""
    command = [sys.executable, "-c", SCRIPT, *map(str, paths)]
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=one_core)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
