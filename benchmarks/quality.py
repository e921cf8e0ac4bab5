"""What scheduler, steps and guidance cost and give: macro F1 by the judge, kernel distance and variety against time.

`python -m benchmarks.quality` draws the first attempt at every image with the models that `make repro` leaves in models/, for
each entry of a grid. Nothing is filtered. The judge scores, so a setting that is chosen by this table is chosen by the judge.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from benchmarks.generation import load_merged_sampler, read_sampler_settings
from benchmarks.harness import Setup, measure_run, results_path, write_results
from pathsynth.classifiers.metrics import classification_scores
from pathsynth.classifiers.model import load_classifier
from pathsynth.cli.options import FILE, run_as_command
from pathsynth.core.devices import pick_device
from pathsynth.core.params import load_params
from pathsynth.data.prepared import open_prepared
from pathsynth.evaluation.fidelity import RealFeatures, fidelity_scores
from pathsynth.evaluation.statistics import bootstrap_scores
from pathsynth.features.extractors import JudgeExtractor
from pathsynth.generation.settings import GenerationSettings
from pathsynth.generation.slots import first_attempts


class Variant(NamedTuple):
    """A combination of sampler settings."""

    scheduler: str
    steps: int
    guidance: float


# Multistep solvers of order 2 and 3, the first-order one, and the paper's, which calls the UNet once more.
SCHEDULERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler")
GRID = (
    *(Variant(scheduler, steps, 3.0) for scheduler in SCHEDULERS for steps in (4, 6, 8, 12, 20)),
    Variant("PNDMScheduler", 30, 3.0),
    *(Variant("DPMSolverMultistepScheduler", 12, guidance) for guidance in (1.0, 2.0, 5.0, 7.5)),
    *(Variant("UniPCMultistepScheduler", 12, guidance) for guidance in (1.5, 2.0)),
    *(Variant("UniPCMultistepScheduler", steps, 7.5) for steps in (6, 8, 12)),
)


@click.command()
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--out", type=FILE, help="Default: quality.json in benchmarks/results, or quality_gpu.json.")
@run_as_command
def main(params_path: Path, out: Path | None) -> None:
    """Draws and scores images with every combination of sampler settings in the grid."""
    params = load_params(params_path)
    device = pick_device(params.device)
    images_per_class = params.section("generation", GenerationSettings).images_per_tissue
    with tempfile.TemporaryDirectory() as scratch:
        table = measure(Setup(params, Path(scratch), device), GRID, images_per_class)
    write_results(out or results_path("quality", device), params, {"table": table})


def measure(setup: Setup, grid: Sequence[Variant], images_per_class: int) -> list[dict]:
    """A row for each combination.

    Returns:
        Rows with `images_per_second` (one run), `macro_f1` by the judge with its 95 % interval, and in the judge's features
        `kernel_distance`, `recall` and `coverage` against the real val images, see `fidelity_scores`.
    """
    slugs, seed = setup.dataset.slugs, setup.params.seeds.drawing
    extractor = JudgeExtractor(load_classifier(setup.artifact("models/judge"), setup.device, slugs))
    prepared = open_prepared(setup.artifact("data/prepared"))
    val_features = extractor(np.array(prepared.images("val"))).astype(np.float64)
    real = RealFeatures(val_features, prepared.labels_of("val"), len(slugs))
    attempts = first_attempts(len(slugs), images_per_class)
    y_true = np.array([attempt.tissue for attempt in attempts])
    table = []
    for variant in grid:
        changes = dict(zip(("scheduler", "num_inference_steps", "guidance_scale"), variant, strict=True))
        settings = read_sampler_settings(setup).model_copy(update=changes)
        # another seed than that of the images which the benchmark scores
        sampler = load_merged_sampler(setup, setup.artifact("models/lora"), settings, seed + 1)
        sampler(attempts[: sampler.batch_size])
        images, seconds, _ = measure_run(partial(sampler, attempts))
        probabilities, features = extractor.predict_with_features(images)
        y_pred = probabilities.argmax(axis=1)
        fidelity = fidelity_scores(features.astype(np.float64), y_true, real, slugs=slugs, seed=seed)
        interval = bootstrap_scores(y_true, y_pred, len(slugs), seed)
        table.append(
            {
                **variant._asdict(),
                "images_per_second": round(len(images) / seconds, 2),
                "macro_f1": round(classification_scores(y_true, y_pred, slugs)["macro_f1"], 3),
                "interval": f"{interval['macro_f1_low']:.3f} to {interval['macro_f1_high']:.3f}",
                "kernel_distance": round(fidelity["kernel_distance"], 4),
                "recall": round(fidelity["recall"], 3),
                "coverage": round(fidelity["coverage"], 3),
                "n": len(images),
            }
        )
        click.echo(table[-1])
    return table


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.quality")
