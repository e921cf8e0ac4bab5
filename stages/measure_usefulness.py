"""Stage measure_usefulness: trains classifiers on synthetic images, real images and both, and tests them on real ones."""

import click

from pathsynth.classifiers.model import list_weight_files
from pathsynth.cli import options
from pathsynth.cli.options import FILE, exit_on_sigterm
from pathsynth.cli.run_log import measure_run
from pathsynth.core.checkpoint import open_checkpoint
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import load_params
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.archives import unpack_split
from pathsynth.data.generated import LabelledImages, check_labels
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.evaluation.usefulness import UsefulnessSettings, measure_usefulness


@click.command()
@options.params
@options.prepared
@options.generated
@click.option("--out", type=FILE, required=True, help="Output JSON file for the scores.")
@options.scratch
@options.logs
@exit_on_sigterm
def main(params_path, prepared, generated, out, scratch, logs):
    """Trains on the accepted images of a generated set, and on as many real ones."""
    params = load_params(params_path)
    data = open_prepared(prepared, params.benchmark_name, params.section("dataset", AnyDataset).label_names)
    settings = params.section("evaluation.usefulness", UsefulnessSettings)
    inputs = [*list_weight_files(settings.classifier, params.folder), prepared, generated]
    with (
        open_checkpoint(scratch, "measure_usefulness", params, {"usefulness": settings}, inputs) as checkpoint,
        measure_run("measure_usefulness", params, logs, earlier=checkpoint.seconds),
        temporary_folder(scratch) as folder,
    ):
        synthetic = LabelledImages(*unpack_split(generated / "accepted.npz", folder))
        check_labels(generated / "accepted.npz", synthetic.labels, data.slugs)
        arguments = (data, synthetic, settings, params.seed, pick_device(params.deterministic), params.folder)
        write_details(out, measure_usefulness(*arguments, trained_on="accepted", checkpoint=checkpoint))


if __name__ == "__main__":
    main()
