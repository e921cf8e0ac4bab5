"""Where the time of a LoRA step goes, as text: with the adapter apart, as peft computes it, and merged.

    python -m benchmarks.profile_lora

writes benchmarks/profiles/lora_step_apart.txt and lora_step_merged.txt.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click

from benchmarks.lora_training import IMAGES
from benchmarks.pairs import Bench, machine
from benchmarks.random_images import random_images
from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.core.devices import pick_device
from pathsynth.core.io import write_text
from pathsynth.core.params import load_params
from pathsynth.diffusion.base import load_base, locate_base
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import train_lora

STEPS, WARM_UP, ROWS = 8, 3, 20


@click.command()
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--out", type=FOLDER, default="benchmarks/profiles", show_default=True)
@reports_errors
def main(params_path: Path, out: Path) -> None:
    """Profiles steps of the selected LoRA, of the same images both ways."""
    params, device = load_params(params_path), pick_device()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(params, params_path.parent, Path(scratch), device, 1)
        for name, merged in (("apart", False), ("merged", True)):
            write_text(out / f"lora_step_{name}.txt", _profile(bench, merged))


def _profile(bench: Bench, merged: bool) -> str:
    """The operations that take most of STEPS steps, and the median time of a step without the profiler."""
    from torch.profiler import ProfilerActivity, profile

    plain = _steps(bench, merged, None)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.device != "cpu" else [])
    profiler = profile(activities=activities)
    _steps(bench, merged, profiler)
    key = "self_cpu_time_total" if bench.device == "cpu" else "self_cuda_time_total"
    table = profiler.key_averages().table(sort_by=key, row_limit=ROWS, max_name_column_width=40)
    head = f"{bench.params.lora_name}, {machine()}: {1e3 * statistics.median(plain):.0f} ms a step (median of {len(plain)})"
    return f"{head}; below, {STEPS} steps under torch's profiler\n{table}\n"


def _steps(bench: Bench, merged: bool, profiler) -> list[float]:
    """Seconds of each step after WARM_UP ones, from the log's calls, one a step."""
    from unittest.mock import patch

    params = bench.params
    tree = params.lora.model_dump()
    tree["training"] |= {"max_train_steps": WARM_UP + STEPS, "merged": merged}
    tree["schedule"]["warmup_steps"] = 0
    settings = LoraSettings.model_validate(tree)
    base = params.benchmark.base
    pipeline = load_base(locate_base(base, bench.root), bench.device, base.variant)
    times: list[float] = []

    def log(step: int, _: dict[str, float]) -> None:
        times.append(time.perf_counter())
        if profiler and step == WARM_UP:
            profiler.start()
        if profiler and step == WARM_UP + STEPS:
            profiler.stop()

    with patch("pathsynth.finetuning.train.LOG_EVERY", 1):
        train_lora(
            pipeline,
            random_images(bench, IMAGES),
            params.benchmark.texts(params.lora.prompts),
            settings,
            params.seed,
            log,
            scratch=bench.scratch,
        )
    return [later - earlier for earlier, later in zip(times[WARM_UP - 1 :], times[WARM_UP:], strict=False)]


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.profile_lora")
