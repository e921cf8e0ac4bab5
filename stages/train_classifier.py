"""Stage train_classifier: trains the gate or the judge and scores it on val and test."""

import click

from pathsynth.classifier import own_weights, save_classifier
from pathsynth.classifier_training import train_classifier
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.curves import Curves
from pathsynth.devices import pick_device
from pathsynth.metric_files import write_details
from pathsynth.params import load_params
from pathsynth.prepared import open_prepared
from pathsynth.resume import resumable


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--role", type=click.Choice(["gate", "judge"]), required=True, help="Which classifier to train.")
@click.option("--prepared", type=FOLDER, required=True, help="Folder of the prepare stage.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the model.")
@click.option("--metrics", type=FILE, required=True, help="JSON file for the scores.")
@click.option("--curves", type=FOLDER, required=True, help="Folder for DVCLive's curves.")
@click.option("--scratch", type=FOLDER, default="scratch", show_default=True, help="Folder for what is needed meanwhile.")
@reports_errors
def main(params_path, role, prepared, out, metrics, curves, scratch):
    """Trains a classifier on data/prepared; the epoch that is kept is saved, and scored once on test."""
    params = load_params(params_path)
    settings = getattr(params.benchmark.classifiers, role)
    data = open_prepared(prepared, params.benchmark_name, params.benchmark.dataset.label_names)
    weights = own_weights(settings, params_path.parent)
    with resumable(scratch, f"train_classifier-{role}", params, [*weights, prepared]) as saved:
        with Curves(curves) as log:
            given = (data, settings, params.seed, pick_device(params.deterministic), log, params_path.parent)
            classifier, scores = train_classifier(*given, saved=saved)
        save_classifier(out, classifier)
        write_details(metrics, scores)


if __name__ == "__main__":
    main()
