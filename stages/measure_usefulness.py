"""Stage measure_usefulness: trains classifiers on few real images, with and without synthetic ones, and tests them."""

import click

from pathsynth.classifiers.model import list_weight_files
from pathsynth.cli import options
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.cli.run_log import measure_run
from pathsynth.core.checkpoint import open_checkpoint
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.archives import SPLITS, unpack_split
from pathsynth.data.generated import LabelledImages, check_labels
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.evaluation.usefulness import UsefulnessSettings, measure_usefulness, open_real_trainings
from pathsynth.features.observe import open_observed


@click.command()
@options.params
@options.prepared
@click.option("--observed", type=FOLDER, required=True, help="Folder of the stage observe_real.")
@options.generated
@click.option("--out", type=FILE, required=True, help="Output JSON file for the scores.")
@options.scratch
@options.logs
@run_as_command
def main(params, prepared, observed, generated, out, scratch, logs):
    """Measures what the accepted images of a generated set add to a few real ones."""
    data = open_prepared(prepared, params.benchmark_name, params.section("dataset", AnyDataset).label_names)
    structure = {split: open_observed(observed, split, data.labels_of(split)).structure for split in SPLITS}
    settings = params.section("evaluation.usefulness", UsefulnessSettings)
    seed = params.seeds.observers
    inputs = [*list_weight_files(settings.classifier, params.folder), prepared, observed, generated]
    with (
        open_checkpoint(scratch, "measure_usefulness", params, seed, {"usefulness": settings}, inputs) as checkpoint,
        measure_run("measure_usefulness", params, logs, earlier=checkpoint.seconds),
        temporary_folder(scratch) as folder,
    ):
        synthetic = LabelledImages(*unpack_split(generated / "accepted.npz", folder))
        check_labels(generated / "accepted.npz", synthetic.labels, data.slugs)
        device, arguments = pick_device(params.device, params.deterministic), (data, synthetic, structure, settings, seed)
        shared = open_real_trainings(scratch, params, settings, data)
        scores = measure_usefulness(
            *arguments, device, params.folder, trained_on="accepted", checkpoint=checkpoint, shared=shared
        )
        write_details(out, scores)


if __name__ == "__main__":
    main()
