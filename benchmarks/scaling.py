"""Whether time for an image and memory stay the same with more images, and what a second process brings.

    python -m benchmarks.scaling

Every case has a process of its own, so that its peak of resident memory is its own. Random images are as good as others here.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click

from benchmarks.pairs import Bench, results, timed, write_results
from benchmarks.random_images import random_images
from pathsynth.cli.options import FILE, reports_errors
from pathsynth.core.devices import pick_device
from pathsynth.core.io import write_text
from pathsynth.core.params import load_params, read_yaml

GENERATED, TRAINED_ON = (90, 900, 9000), (1000, 10_000, 90_000)
# Fewer than a user would take: what one step takes is the same.
SAMPLING_STEPS, LORA_STEPS, CLASSIFIER_SIZE = 4, 60, 32
PROCESSES = (1, 2)
STAGES: dict[str, list[str]] = {
    "train_lora": ["--prepared", "data/prepared"],
    "generate_filtered": ["--lora", "models/lora", "--gate", "models/gate", "--gate-metrics", "metrics/gate.json"],
}


def generation(bench: Bench, count: int) -> Callable[[], int]:
    """Draws images and lets a gate look at them, one try each; needs what `make repro` leaves in models/."""
    from benchmarks.pipelines import merged_pipeline, sampler_of
    from pathsynth.classifiers.model import load_classifier
    from pathsynth.core.checkpoint import Saved
    from pathsynth.core.scratch import temporary_folder
    from pathsynth.generation.filtering import generate_filtered
    from pathsynth.generation.slots import Slots

    params = bench.params
    slugs = params.benchmark.dataset.slugs
    pipeline = merged_pipeline(params, bench.root, bench.device, bench.root / "models" / "lora")
    settings = params.benchmark.generation.model_copy(update={"num_inference_steps": SAMPLING_STEPS})
    sampler = sampler_of(pipeline, params, settings, params.seed)
    gate = load_classifier(bench.root / "models" / "gate", bench.device, slugs)
    each = count // len(slugs)

    def run() -> int:
        with temporary_folder(bench.scratch) as folder:
            slots = Slots(Saved(folder), len(slugs), each, sampler.image_size, params.seed)
            generate_filtered(sampler, gate.probabilities, slots, 1, sampler.batch_size)
            return len(slots.table(slugs))

    return run


def lora_training(bench: Bench, count: int) -> Callable[[], int]:
    """Trains the selected LoRA for LORA_STEPS steps."""
    from pathsynth.diffusion.base import load_base, locate_base
    from pathsynth.finetuning.train import train_lora

    params = bench.params
    base = params.benchmark.base
    training = params.lora.training.model_copy(update={"max_train_steps": LORA_STEPS})
    settings = params.lora.model_copy(update={"training": training})
    pipeline = load_base(locate_base(base, bench.root), bench.device, base.variant)
    prompts = params.benchmark.texts(params.lora.prompts)
    images = random_images(bench, count)

    def run() -> int:
        result = train_lora(pipeline, images, prompts, settings, params.seed, lambda *_: None, scratch=bench.scratch)
        return int(result["images_seen"])

    return run


def classifier_epoch(bench: Bench, count: int) -> Callable[[], int]:
    """Trains the gate's network for one epoch, on images of CLASSIFIER_SIZE pixels."""
    from pathsynth.classifiers.training import Training, new_classifier

    params = bench.params
    settings = params.benchmark.classifiers.gate.model_copy(update={"epochs": 1, "input_size": CLASSIFIER_SIZE})
    images = random_images(bench, count)
    classifier = new_classifier(settings, images.slugs, params.seed, bench.device, bench.root)

    def run() -> int:
        list(Training(classifier, images.images("train"), images.labels_of("train"), settings, params.seed).epochs())
        return count // settings.batch_size * settings.batch_size

    return run


CASES: dict[str, tuple[Callable[[Bench, int], Callable[[], int]], tuple[int, ...]]] = {
    "generation": (generation, GENERATED),
    "LoRA training": (lora_training, TRAINED_ON),
    "classifier, an epoch": (classifier_epoch, TRAINED_ON),
}


@click.command()
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--out", type=FILE, help="By default scaling.json in benchmarks/results, or scaling_gpu.json.")
@reports_errors
def main(params_path: Path, out: Path | None) -> None:
    """Measures all cases, prints a row for each and writes them."""
    import torch

    params, device = load_params(params_path), pick_device()
    out = out or results("scaling", device)
    table: list[dict] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(params, params_path.parent, Path(scratch), device, 1)
        for name, (_, counts) in CASES.items():
            for count in counts:
                # here, so that making them is no part of the case's memory
                random_images(bench, count)
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                    seconds, done, peak = alone.submit(case, name, count, bench).result()
                table.append(_row(name, f"{count} images", 1, round(1e3 * seconds / done, 1), "ms an image", peak))
                write_results(out, params, {"table": table})
    most = torch.cuda.device_count() if device != "cpu" else max(PROCESSES)
    for stage in STAGES:
        for processes in (count for count in PROCESSES if count <= most):
            table.append(_row(stage, "as in params", processes, round(_stage(stage, processes, params_path), 1), "s", "-"))
            write_results(out, params, {"table": table})


def _row(what: str, size: str, processes: int, value: float, unit: str, peak: int | str) -> dict:
    row = {"what": what, "size": size, "processes": processes, "time": value, "unit": unit, "peak MB": peak}
    click.echo(row)
    return row


def case(name: str, count: int, bench: Bench) -> tuple[float, int, int]:
    """Seconds without loading models, units done and peak memory in MB, of a process that does nothing else."""
    done, seconds = timed(CASES[name][0](bench, count))
    return seconds, done, round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def _stage(name: str, processes: int, params_path: Path) -> float:
    """Seconds of a stage on what `make repro` has left, started as DVC does; what it makes is thrown away."""
    root = params_path.resolve().parent
    tree = read_yaml(params_path) | {"processes": processes}
    base = tree["benchmarks"][tree["benchmark"]]["base"]
    if not base["revision"]:
        base["pretrained_model_name_or_path"] = str(root / base["pretrained_model_name_or_path"])
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        write_text(made / "params.yaml", json.dumps(tree))
        words = [*STAGES[name], "--params", made / "params.yaml", "--out", made / "out", "--metrics", made / "metrics.json"]
        words += ["--logs", made / "logs"]
        words += ["--scratch", made / "scratch"]
        if name == "train_lora":
            words += ["--curves", made / "curves"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"stages.{name}", *map(str, words)], cwd=root, check=True)
        return time.perf_counter() - start


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.scaling")
