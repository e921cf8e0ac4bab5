"""Stage generate_filtered: draws images, has the gate check each, and tries rejected ones again."""

import click

from pathsynth import labels
from pathsynth.base_model import load_base
from pathsynth.classifier import load_classifier
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.devices import pick_device
from pathsynth.files import write_json
from pathsynth.generation import Sampler, check_quota, generate_filtered, generation_metrics, save_generated
from pathsynth.lora import attach_lora
from pathsynth.params import beside, load_params


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--lora", type=FOLDER, required=True, help="Folder of the adapter.")
@click.option("--gate", type=FOLDER, required=True, help="Folder of the classifier that filters.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the images and the table of attempts.")
@click.option("--metrics", type=FILE, required=True, help="JSON file for the counts.")
@reports_errors
def main(params_path, lora, gate, out, metrics):
    """Fills the wanted number of images of every tissue, as far as the limit of attempts allows."""
    params = load_params(params_path)
    settings, size = params.benchmark.generation, params.benchmark.dataset.image_size
    classifier = load_classifier(gate, pick_device(), labels.SLUGS)
    pipeline = load_base(beside(params_path, params.benchmark.base.path), pick_device())
    attach_lora(pipeline, lora)
    result = generate_filtered(
        draw=Sampler(pipeline, params.benchmark.prompts.texts(params.lora.prompts), settings, params.seed, size),
        gate=classifier.probabilities,
        tissues=len(labels.SLUGS),
        images_per_tissue=settings.images_per_tissue,
        max_attempts=settings.max_attempts,
        batch_size=settings.batch_size,
        seed=params.seed,
    )
    table = result.table(labels.SLUGS)
    save_generated(out, result, table, size)
    counts = generation_metrics(table, labels.SLUGS, settings.images_per_tissue)
    write_json(metrics, counts)
    check_quota(counts, settings.images_per_tissue, settings.quota)


if __name__ == "__main__":
    main()
