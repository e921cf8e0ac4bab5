"""What schedulers, steps and guidance cost and give: macro F1 by the judge, Fréchet distance and variety against time.

    python -m benchmarks.quality

draws the first try at every slot by the models that `make repro` leaves in models/, in every way of a grid, and writes
benchmarks/results/quality.json. Nothing is filtered, and it is the judge who scores, not the gate: a way that is chosen by this
table is chosen by the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from benchmarks.pairs import results, timed, write_results
from benchmarks.pipelines import merged_pipeline, sampler_of
from pathsynth.classifiers.metrics import classification_scores
from pathsynth.classifiers.model import load_classifier
from pathsynth.cli.check import Params
from pathsynth.cli.options import FILE, reports_errors
from pathsynth.core.devices import pick_device
from pathsynth.core.params import load_params
from pathsynth.data.prepared import open_prepared
from pathsynth.evaluation.fidelity import RealImages, feature_sums, frechet_distance, in_real_balls, recall
from pathsynth.evaluation.statistics import bootstrap_macro_f1
from pathsynth.features.extractors import JudgeExtractor
from pathsynth.generation.filtering import first_attempts
from pathsynth.generation.settings import GenerationSettings


class Way(NamedTuple):
    """One way to draw the images."""

    scheduler: str
    steps: int
    guidance: float


# Deterministic multistep solvers of order 2 and 3, the first-order one, and the paper's, which calls the UNet once more.
STEPS = (4, 6, 8, 12, 20)
SCHEDULERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler")
GRID = (
    *(Way(scheduler, steps, 3.0) for scheduler in SCHEDULERS for steps in STEPS),
    Way("PNDMScheduler", 30, 3.0),
    *(Way("DPMSolverMultistepScheduler", 12, guidance) for guidance in (1.0, 2.0, 5.0, 7.5)),
    *(Way("UniPCMultistepScheduler", steps, 7.5) for steps in (6, 8, 12)),
)


@click.command()
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--images", type=click.IntRange(2), help="Of each tissue; by default as many as the benchmark draws.")
@click.option("--out", type=FILE, help="By default quality.json in benchmarks/results, or quality_gpu.json.")
@reports_errors
def main(params_path: Path, images: int | None, out: Path | None) -> None:
    """Draws images in every way of the grid and scores them."""
    params = load_params(params_path)
    device = pick_device()
    table = measure(params, params_path.parent, device, GRID, images or params.benchmark.generation.images_per_tissue)
    write_results(out or results("quality", device), params, {"table": table})


def measure(params: Params, root: Path, device: str, grid: Sequence[Way], images_per_tissue: int) -> list[dict]:
    """A row for every way.

    Args:
        params: the benchmark and the LoRA that models/ was trained with.
        root: the folder of models/ and data/.
        device: torch device.
        grid: ways to draw.
        images_per_tissue: first tries of each tissue.

    Returns:
        Rows with the way, `images_per_second` (one run), `macro_f1` by the judge with its 95 % interval, and by the
        judge's features `frechet_distance` to the real val images, and `recall` and `coverage` of them.
    """
    slugs = params.benchmark.dataset.slugs
    judge = load_classifier(root / "models" / "judge", device, slugs)
    extractor = JudgeExtractor(judge)
    seen = extractor(np.array(open_prepared(root / "data" / "prepared").images("val")[:]))
    real = RealImages(seen, params.benchmark.evaluation.realism.nearest_neighbours, device)
    pipeline = merged_pipeline(params, root, device, root / "models" / "lora")
    attempts = first_attempts(len(slugs), images_per_tissue)
    wanted = np.array([attempt.tissue for attempt in attempts])
    table = []
    for way in grid:
        # other images than those that are scored in the end
        sampler = sampler_of(pipeline, params, _settings(params, way), params.seed + 1)
        sampler(attempts[: sampler.batch_size])
        images, seconds = timed(partial(sampler.draw_all, attempts))
        probabilities, features = extractor.looks(images)
        predicted = probabilities.argmax(axis=1)
        low, high = bootstrap_macro_f1(
            wanted, predicted, len(slugs), params.seed, params.benchmark.evaluation.bootstrap_resamples
        )
        table.append(
            {
                **way._asdict(),
                "images_per_second": round(len(images) / seconds, 2),
                "macro_f1": round(classification_scores(wanted, predicted, slugs)["macro_f1"], 3),
                "interval": f"{low:.3f} to {high:.3f}",
                "frechet_distance": round(frechet_distance(real.normal, feature_sums(features)), 2),
                "recall": round(recall(features, real), 3),
                "coverage": round(float(in_real_balls(features, real)[1].mean()), 3),
                "n": len(images),
            }
        )
        click.echo(table[-1])
    return table


def _settings(params: Params, way: Way) -> GenerationSettings:
    changed = {"scheduler": way.scheduler, "num_inference_steps": way.steps, "guidance_scale": way.guidance}
    return GenerationSettings.model_validate(params.benchmark.generation.model_dump() | changed)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.quality")
