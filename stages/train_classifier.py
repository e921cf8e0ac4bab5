"""Stage train_classifier: trains the gate or the judge and scores it on val and test."""

import click

from pathsynth.classifiers.model import own_weights, save_classifier
from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.classifiers.training import train_classifier
from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.core.checkpoint import resumable
from pathsynth.core.curves import Curves
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import load_params
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset


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
    settings = params.section(f"classifiers.{role}", ClassifierSettings)
    data = open_prepared(prepared, params.benchmark_name, params.section("dataset", AnyDataset).label_names)
    weights = own_weights(settings, params.folder)
    given = {"seed": params.seed, "deterministic": params.deterministic, "classifier": settings}
    with resumable(scratch, f"train_classifier-{role}", given, [*weights, prepared]) as saved:
        with Curves(curves) as log:
            given = (data, settings, params.seed, pick_device(params.deterministic), log, params.folder)
            classifier, scores = train_classifier(*given, saved=saved)
        save_classifier(out, classifier)
        write_details(metrics, scores)


if __name__ == "__main__":
    main()
