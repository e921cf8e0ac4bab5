"""Memory and time of the scores of realism and copying as images grow in number: `python -m benchmarks.scores_memory`.

Features are random numbers in files. Each number of generated images is scored in a process of its own, against the same number
of real ones. What counts is by how much the largest resident set that the kernel saw for the process (VmHWM) exceeds that after
the libraries' imports and a first small use of them.
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

from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.files import write_json, write_npy_in_pieces

TISSUES = 9
PIECE = 4096
SCRIPT = """
import json, sys, time
import numpy as np
from pathsynth import copying, realism
from pathsynth.rows import RowFile

def peak():
    return [int(line.split()[1]) * 1024 / 1e6 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]

def score(generated, real, val):
    tissues = [np.arange(len(rows)) % 9 for rows in (generated, real, val)]
    reference = realism.Reference(real, tissues[1], 5)
    realism.realism_scores(generated, tissues[0], reference, slugs="abcdefghi", seed=0)
    distances = [copying.nearest(rows, real)[0] for rows in (generated, val)]
    return copying.copying_scores(distances[0], tissues[0], distances[1], tissues[2], "abcdefghi")

score(*(np.random.default_rng(i).normal(size=(200, 16)) for i in range(3)))
before, start = peak(), time.perf_counter()
score(*(RowFile(path) for path in sys.argv[1:]))
print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": peak() - before}))
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
        real, val = Path(temporary) / "real.npy", Path(temporary) / "val.npy"
        write_features(real, 0, reference, dimensions)
        write_features(val, 1, 500, dimensions)
        for count in images:
            generated = Path(temporary) / f"generated{count}.npy"
            write_features(generated, 2, count, dimensions)
            row = {
                "part": "scores of realism and copying",
                "images": count,
                "reference": reference,
                "dimensions": dimensions,
                "features_mb": round(count * dimensions * 4 / 1e6, 1),
                **measured(generated, real, val),
            }
            rows[str(count)] = row
            click.echo("  ".join(f"{key}: {value}" for key, value in row.items()))
    packages = ("numpy", "scipy", "torch", "torchmetrics")
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    write_json(out, {"machine": f"{os.cpu_count()} CPU cores", "versions": versions, "rows": rows})


def write_features(path: Path, seed: int, count: int, dimensions: int) -> None:
    """Writes float32 (count, dimensions), normally distributed around the mean of each row's tissue."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(TISSUES, dimensions))

    def pieces() -> Iterator[np.ndarray]:
        for start in range(0, count, PIECE):
            rows = np.arange(start, min(count, start + PIECE))
            yield (means[rows % TISSUES] + rng.normal(size=(len(rows), dimensions))).astype(np.float32)

    write_npy_in_pieces(path, (count, dimensions), np.dtype(np.float32), pieces())


def measured(generated: Path, real: Path, val: Path) -> dict[str, float]:
    """Seconds and additional peak memory in MB of the scores in a process of their own."""
    command = [sys.executable, "-c", SCRIPT, *map(str, (generated, real, val))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": round(result["seconds"], 1), "peak_mb": round(result["peak_mb"])}


if __name__ == "__main__":
    main()
