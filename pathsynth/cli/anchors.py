"""`python -m pathsynth anchors`: every score of sets whose quality is known, to tell what a score can and cannot see."""

from __future__ import annotations

from collections.abc import Mapping

import click
import numpy as np

from pathsynth.cli import options
from pathsynth.cli.options import FOLDER, run_as_command
from pathsynth.core.devices import pick_device
from pathsynth.core.io import write_json
from pathsynth.core.params import Params, PositiveInt
from pathsynth.core.progress import progress_bar
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.generated import LabelledImages
from pathsynth.data.prepared import Prepared
from pathsynth.data.sampling import subsample_per_class
from pathsynth.diffusion.base import load_base, locate_base
from pathsynth.diffusion.reconstruct import copy_training_images
from pathsynth.diffusion.settings import BaseModelSettings
from pathsynth.evaluation.evaluate import score_accuracies
from pathsynth.evaluation.scoring import open_references, open_scorer
from pathsynth.features.controls import (
    move_and_restain,
    randomize_phases,
    shuffle_patches,
    shuffle_pixels,
)
from pathsynth.features.observe import observe


@click.command()
@click.option("--out", type=FOLDER, default="metrics/anchors", show_default=True, help="Folder for BENCHMARK.json.")
@options.params_here
@click.option("--prepared", type=FOLDER, default="data/prepared", show_default=True)
@click.option("--observed", type=FOLDER, default="data/observed", show_default=True)
@click.option("--models", type=FOLDER, default="models", show_default=True, help="Folder with gate and judge.")
@options.scratch
@run_as_command
def anchors(out, params, prepared, observed, models, scratch):
    """Scores real images, copies of training images, and images without structure.

    A score that gives shuffled pixels the value of real images cannot see structure. The report and docs/scores.md show the
    table. Requires the benchmark's classifiers: run `dvc repro observe_real` or `dvc pull` first.
    """
    references = open_references(params, prepared, observed, models / "gate", models / "judge")
    scorer = open_scorer(params, references)
    scores = {}
    with temporary_folder(scratch) as folder:
        for name, images in progress_bar(make_anchors(params, references.prepared).items(), "scoring anchors"):
            scores[name], _ = scorer.score(observe(folder, name, images.images, images.labels, references.observers))
    path = out / f"{params.benchmark_name}.json"
    write_json(path, {"real_images": score_accuracies(references.real), "sets": scores})
    click.echo(f"The scores of {len(scores)} sets are in {path}.")


def make_anchors(params: Params, prepared: Prepared) -> dict[str, LabelledImages]:
    """Makes the sets, each with as many images of every tissue as are generated, or as there are.

    `val` and `test` are real; copies are made of training images, and images without structure of validation images.
    """
    seed, per_tissue = params.seeds.observers, params.section("generation.images_per_tissue", PositiveInt)

    def draw(split: str) -> tuple[np.ndarray, np.ndarray]:
        labels = prepared.labels_of(split)
        selected = subsample_per_class(labels, np.full(len(prepared.slugs), per_tissue), seed)
        return prepared.images(split)[selected], labels[selected]

    (val, val_labels), (test, test_labels) = draw("val"), draw("test")
    settings = params.section("base", BaseModelSettings)
    base = load_base(locate_base(settings, params.folder), pick_device(params.device, params.deterministic), settings.variant)
    copies = copy_training_images(base, prepared, per_tissue, seed)
    without_structure: Mapping[str, np.ndarray] = {
        "shuffled_4x4": shuffle_patches(val, 4, seed),
        "shuffled_8x8": shuffle_patches(val, 8, seed),
        "shuffled_pixels": shuffle_pixels(val, seed),
        "random_phases": randomize_phases(val, seed),
    }
    return {
        "val": LabelledImages(val, val_labels),
        "test": LabelledImages(test, test_labels),
        "vae_copies": copies,
        "moved_copies": LabelledImages(move_and_restain(np.asarray(copies.images), seed), copies.labels),
        **{name: LabelledImages(images, val_labels) for name, images in without_structure.items()},
    }
