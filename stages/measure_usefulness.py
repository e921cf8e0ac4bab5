"""Stage measure_usefulness: trains classifiers on synthetic, on real and on both images, and tests them on real ones."""

import click

from pathsynth.classifiers.model import own_weights
from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.cli.run_log import measured
from pathsynth.core.checkpoint import resumable
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import load_params
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.archives import read_generated
from pathsynth.data.generated import LabelledImages, check_labels
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.evaluation.usefulness import UsefulnessSettings, usefulness


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--prepared", type=FOLDER, required=True, help="Folder of the prepare stage.")
@click.option("--generated", type=FOLDER, required=True, help="Folder of the generate_filtered stage.")
@click.option("--out", type=FILE, required=True, help="JSON file for the scores.")
@click.option("--scratch", type=FOLDER, default="scratch", show_default=True, help="Folder for what is needed meanwhile.")
@click.option("--logs", type=FOLDER, default="logs", show_default=True, help="Folder for measured times and memory.")
@reports_errors
def main(params_path, prepared, generated, out, scratch, logs):
    """Trains on the accepted images of a generated set, and on as many real ones."""
    params = load_params(params_path)
    data = open_prepared(prepared, params.benchmark_name, params.section("dataset", AnyDataset).label_names)
    settings = params.section("evaluation.usefulness", UsefulnessSettings)
    weights = own_weights(settings.classifier, params.folder)
    inputs = {"seed": params.seed, "deterministic": params.deterministic, "usefulness": settings}
    with (
        resumable(scratch, "measure_usefulness", inputs, [*weights, prepared, generated]) as saved,
        measured("measure_usefulness", params, logs, earlier=saved.seconds),
        temporary_folder(scratch) as folder,
    ):
        synthetic = LabelledImages(*read_generated(generated / "accepted.npz", folder))
        check_labels(generated / "accepted.npz", synthetic.labels, data.slugs)
        given = (data, synthetic, settings, params.seed, pick_device(params.deterministic), params.folder)
        write_details(out, usefulness(*given, trained_on="accepted", saved=saved))


if __name__ == "__main__":
    main()
