"""Time per image and memory as images grow in number: `python -m benchmarks.scaling`.

Every case runs in a process of its own, so that its peak resident memory is its own; images are random.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click

from benchmarks.generation import fill_slots, load_gate, load_merged_sampler, read_sampler_settings
from benchmarks.harness import Setup, measure_run, results_path, write_results
from benchmarks.training import make_random_images, prepare_classifier_run, prepare_lora_run, set_steps
from pathsynth.classifiers.settings import Classifiers
from pathsynth.cli.options import FILE, run_as_command
from pathsynth.core.devices import pick_device
from pathsynth.core.params import load_params

# Fewer steps than in use: the time of one is the same.
SAMPLING_STEPS, LORA_STEPS, CLASSIFIER_SIZE = 4, 60, 32


def generation(setup: Setup, count: int) -> Callable[[], int]:
    """Draws images and classifies them with the gate, one attempt each."""
    settings = read_sampler_settings(setup).model_copy(update={"num_inference_steps": SAMPLING_STEPS})
    sampler = load_merged_sampler(setup, setup.artifact("models/lora"), settings, setup.params.seeds.drawing)
    gate, per_class = load_gate(setup), count // len(setup.prompts)
    return lambda: fill_slots(setup, sampler, gate, per_class, 1)[1]


def lora_training(setup: Setup, count: int) -> Callable[[], int]:
    """Trains the selected LoRA for LORA_STEPS steps."""
    return prepare_lora_run(setup, make_random_images(setup, count), set_steps(setup.lora, LORA_STEPS))


def classifier_epoch(setup: Setup, count: int) -> Callable[[], int]:
    """Trains the gate's network for one epoch, on images of CLASSIFIER_SIZE pixels."""
    gate, images = setup.params.section("classifiers", Classifiers).gate, make_random_images(setup, count)
    settings = gate.model_copy(update={"epochs": 1, "input_size": CLASSIFIER_SIZE})
    return prepare_classifier_run(setup, images.images("train"), images.labels_of("train"), settings)


CASES: dict[str, tuple[Callable[[Setup, int], Callable[[], int]], tuple[int, ...]]] = {
    "generation": (generation, (90, 900, 9000)),
    "LoRA training": (lora_training, (1000, 10_000, 90_000)),
    "classifier, an epoch": (classifier_epoch, (1000, 10_000, 90_000)),
}


@click.command()
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--out", type=FILE, help="Default: scaling.json in benchmarks/results, or scaling_gpu.json.")
@run_as_command
def main(params_path: Path, out: Path | None) -> None:
    """Measures every case, with the models that `make repro` has trained."""
    params = load_params(params_path)
    device = pick_device(params.device)
    out, table = out or results_path("scaling", device), []
    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup(params, Path(scratch), device)
        for name, (_, counts) in CASES.items():
            for count in counts:
                if name != "generation":
                    make_random_images(setup, count)  # here, so that writing them is not in the memory of the case
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    row = pool.submit(run_case, name, count, setup).result()
                table.append({"what": name, "size": f"{count} images", **row})
                click.echo(table[-1])
                write_results(out, params, {"table": table})


def run_case(name: str, count: int, setup: Setup) -> dict[str, object]:
    """Milliseconds per image, without loading models, and the peak memory of this process."""
    units, seconds, gpu_mb = measure_run(CASES[name][0](setup, count))
    row = {"time": round(1e3 * seconds / units, 1), "unit": "ms an image"}
    row["peak MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    return row if gpu_mb is None else row | {"peak GPU MB": gpu_mb}


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.scaling")
