"""Stage train_classifier: trains the gate or the judge and scores it on val and test."""

import click

from pathsynth.classifiers.model import list_weight_files, save_classifier
from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.classifiers.training import train_classifier
from pathsynth.cli import options
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.checkpoint import open_checkpoint
from pathsynth.core.curves import Curves
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset


@click.command()
@options.params
@click.option("--role", type=click.Choice(["gate", "judge"]), required=True, help="Classifier to train.")
@options.prepared
@click.option("--out", type=FOLDER, required=True, help="Output folder for the model.")
@click.option("--metrics", type=FILE, required=True, help="Output JSON file for the scores.")
@options.curves
@options.scratch
@run_as_command
def main(params, role, prepared, out, metrics, curves, scratch):
    """Trains a classifier on the train split, and scores the selected epoch on val and test."""
    seed = params.seeds.observers
    settings = params.section(f"classifiers.{role}", ClassifierSettings)
    data = open_prepared(prepared, params.benchmark_name, params.section("dataset", AnyDataset).label_names)
    inputs = [*list_weight_files(settings, params.folder), prepared]
    with open_checkpoint(scratch, f"train_classifier-{role}", params, seed, {"classifier": settings}, inputs) as checkpoint:
        with Curves(curves) as log:
            device = pick_device(params.device, params.deterministic)
            classifier, scores = train_classifier(data, settings, seed, device, log, params.folder, checkpoint)
        save_classifier(out, classifier)
        write_details(metrics, scores)


if __name__ == "__main__":
    main()
