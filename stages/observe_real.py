"""Stage observe_real: predictions and features of real images and of copies, and the classifiers' scores on corrupted ones."""

import click
import numpy as np

from pathsynth.classifiers.model import load_gate_and_judge
from pathsynth.cli import options
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.core.rows import select_rows
from pathsynth.data.generated import LabelledImages
from pathsynth.data.prepared import open_prepared
from pathsynth.data.sampling import subsample_per_class
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.base import load_base, locate_base
from pathsynth.diffusion.reconstruct import copy_training_images
from pathsynth.diffusion.settings import BaseModelSettings
from pathsynth.features.controls import move_and_restain
from pathsynth.features.extractors import load_extractor
from pathsynth.features.observe import Observers, fit_control, observe_real
from pathsynth.features.robustness import robustness_scores
from pathsynth.features.settings import ObservationSettings

# Training images of each tissue that are copied, as a positive control of the check for copies.
COPIES_PER_TISSUE = 25


@click.command()
@options.params
@options.prepared
@options.gate
@options.judge
@click.option("--out", type=FOLDER, required=True, help="Output folder for predictions and features.")
@click.option("--metrics", type=FILE, required=True, help="Output JSON file for the scores on corrupted images.")
@run_as_command
def main(params, prepared, gate, judge, out, metrics):
    """Computes predictions and features of all real images, which every generated set is compared with."""
    seed = params.seeds.observers
    device = pick_device(params.device, params.deterministic)
    data = open_prepared(prepared, params.benchmark_name, params.section("dataset", AnyDataset).label_names)
    gate_model, judge_model = load_gate_and_judge(gate, judge, device, data.slugs)
    settings = params.section("evaluation.observation", ObservationSettings)
    extractor = load_extractor(settings.features, params.folder, device, judge_model)
    colour = fit_control(data, settings.colour_images_per_tissue, seed)
    base = params.section("base", BaseModelSettings)
    pipeline = load_base(locate_base(base, params.folder), device, base.variant)
    copies = copy_training_images(pipeline, data, COPIES_PER_TISSUE, seed)
    copies = LabelledImages(move_and_restain(copies.images, seed), copies.labels)
    observe_real(out, data, copies, Observers(gate_model, judge_model, colour, extractor), (gate, judge))
    labels, robustness = data.labels_of("test"), settings.robustness
    selected = subsample_per_class(labels, np.full(len(data.slugs), robustness.images_per_tissue), seed)
    subset = (select_rows(data.images("test"), selected), labels[selected], data.slugs)
    classifiers = {"gate": gate_model, "judge": judge_model}
    write_details(metrics, robustness_scores(classifiers, *subset, haematoxylin_eosin=robustness.haematoxylin_eosin))


if __name__ == "__main__":
    main()
