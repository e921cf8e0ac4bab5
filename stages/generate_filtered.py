"""Stage generate_filtered: draws images, has the gate check each, and tries rejected ones again."""

import click

from pathsynth.base_model import load_base, locate_base, unet_sha256
from pathsynth.cards import dataset_card
from pathsynth.classifier import load_classifier
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.devices import pick_device
from pathsynth.files import write_text
from pathsynth.generation import Sampler, check_quota, generate_filtered, generation_metrics, save_generated
from pathsynth.lora import attach_lora
from pathsynth.measured import measured
from pathsynth.metric_files import read_details, write_details
from pathsynth.params import load_params
from pathsynth.processes import joined, run_on
from pathsynth.resume import resumable
from pathsynth.slots import Slots


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--lora", type=FOLDER, required=True, help="Folder of the adapter.")
@click.option("--gate", type=FOLDER, required=True, help="Folder of the classifier that filters.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the images and the table of attempts.")
@click.option("--metrics", type=FILE, required=True, help="JSON file for the counts.")
@click.option("--gate-metrics", type=FILE, required=True, help="JSON file of the gate's scores, for the card.")
@click.option("--scratch", type=FOLDER, default="scratch", show_default=True, help="Folder for what is needed meanwhile.")
@click.option("--logs", type=FOLDER, default="logs", show_default=True, help="Folder for measured times and memory.")
@reports_errors
def main(params_path, lora, gate, out, metrics, gate_metrics, scratch, logs):
    """Fills the wanted number of images of every tissue, as far as the limit of attempts allows."""
    params = load_params(params_path)
    settings, dataset, base = params.benchmark.generation, params.benchmark.dataset, params.benchmark.base
    folder = locate_base(base, params_path.parent)
    if run_on(params.processes):
        return
    classifier = load_classifier(gate, pick_device(params.deterministic), dataset.slugs)
    pipeline = load_base(folder, pick_device(params.deterministic), base.variant)
    attach_lora(pipeline, lora, unet_sha256(folder, base.variant))
    gate_scores = read_details(gate_metrics)
    prompts = params.benchmark.texts(params.lora.prompts)
    sampler = Sampler(pipeline, prompts, settings, params.seed, dataset.image_size, dataset.channels)
    with joined() as processes, resumable(scratch, "generate_filtered", params, [lora, gate, folder], processes) as saved:
        with measured("generate_filtered", params, logs, keep=processes.main, earlier=saved.seconds):
            slots = Slots(saved, len(dataset.slugs), settings.images_per_tissue, dataset.image_size, params.seed)
            generate_filtered(sampler, classifier.probabilities, slots, settings.max_attempts, sampler.batch_size, processes)
            counts = None
            if processes.main:
                table = slots.table(dataset.slugs)
                counts = generation_metrics(table, dataset.slugs, settings.images_per_tissue)
                save_generated(out, slots, table, dataset.channels)
                write_text(out / "README.md", dataset_card(params, counts, gate_scores))
                write_details(metrics, counts)
        # by all, so that none waits for one that has ended; what was drawn is kept for another quota
        check_quota(processes.gather(counts)[0], settings.images_per_tissue, settings.quota)


if __name__ == "__main__":
    main()
