"""A long run of filtering with a gate that rejects nine of ten: memory, open files and what is said do not grow with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# PATHSYNTH_FAULTS has it run at full length.
SLOTS = 10_000 if "PATHSYNTH_FAULTS" in os.environ else 4_000

RUN = """
import json, os, sys
from pathlib import Path
import numpy as np, psutil
from pathsynth.generation import generate_filtered, generation_metrics, save_generated
from pathsynth.resume import Saved
from pathsynth.slots import Slots

folder, count = Path(sys.argv[1]), int(sys.argv[2])
process, slugs, seen = psutil.Process(), ["a", "b"], []
rng = np.random.default_rng(1)

def look():
    seen.append([process.memory_info().rss - process.memory_info().shared, process.num_fds()])

def draw(attempts):
    look()
    return np.zeros((len(attempts), 128, 128, 3), np.uint8)

def gate(images):
    right = rng.random(len(images)) < 0.1
    return np.stack([right, ~right], 1).astype(np.float32)

slots = Slots(Saved(folder), 2, count // 2, 128, 1)
# tissue b would be accepted nine times of ten, so its answers are turned round
turned = []
def fair(images):
    answers = gate(images)
    return np.where(np.array(turned)[:, None], answers[:, ::-1], answers)
def remember(attempts):
    turned[:] = [attempt.tissue == 1 for attempt in attempts]
    return draw(attempts)

generate_filtered(remember, fair, slots, 100, 64)
table = slots.table(slugs)
look()
save_generated(folder / "out", slots, table)
look()
print(json.dumps({"attempts": len(table), "counts": generation_metrics(table, slugs, count // 2), "seen": seen}))
"""


def _run(folder: Path, count: int) -> tuple[dict, str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(count)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_memory_open_files_and_what_is_said_do_not_grow(tmp_path):
    (short, short_said), (long, said) = _run(tmp_path / "short", SLOTS // 10), _run(tmp_path / "long", SLOTS)
    assert 0.08 < long["counts"]["acceptance_rate"] < 0.12 and long["attempts"] > 8 * SLOTS
    assert long["counts"]["unfilled"] < SLOTS / 1000
    peaks = [max(memory for memory, _ in run["seen"]) for run in (short, long)]
    said_of = f"{SLOTS} slots, {long['attempts']} attempts: memory {peaks[0] / 1e6:.0f} to {peaks[1] / 1e6:.0f} MB"
    print(f"{said_of}, {long['seen'][0][1]} to {long['seen'][-1][1]} files open, {len(said)} bytes said")
    # the images that are kept would take 98 kB a slot, and archives are written 32 MB at a time
    assert peaks[1] - peaks[0] < 1e8
    assert len({files for _, files in long["seen"]}) <= 2
    assert len(said) < len(short_said) + 100_000
