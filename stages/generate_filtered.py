"""Stage generate_filtered: draws images, has the gate check each, and tries rejected ones again."""

from pathlib import Path

import click

from pathsynth.cli import FILE, FOLDER, reports_errors


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--lora", type=FOLDER, help="Folder of the adapter; without it the untuned base draws, one try per slot.")
@click.option("--prompts", type=click.Choice(["plain", "described"]), help="Prompt set; by default that of the LoRA.")
@click.option("--gate", type=FOLDER, required=True, help="Folder of the classifier that filters.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the images and the table of attempts.")
@click.option("--metrics", type=FILE, help="JSON file for the counts; without it no quota is checked.")
@reports_errors
def main(params_path, lora, prompts, gate, out, metrics):
    """Fills the wanted number of images of every tissue, as far as the limit of attempts allows."""
    from pathsynth.base_model import check_image_size, load_base
    from pathsynth.classifier import load_classifier
    from pathsynth.devices import pick_device
    from pathsynth.files import write_json
    from pathsynth.generation import Sampler, check_quota, generate_filtered, generation_metrics, save_generated
    from pathsynth.lora import attach_lora
    from pathsynth.params import beside, load_params

    params = load_params(Path(params_path))
    settings, size = params.benchmark.generation, params.benchmark.dataset.image_size
    classifier = load_classifier(Path(gate), pick_device())
    pipeline = load_base(beside(Path(params_path), params.benchmark.base.path), pick_device())
    check_image_size(pipeline, size)
    if lora:
        attach_lora(pipeline, Path(lora))
    result = generate_filtered(
        draw=Sampler(pipeline, params.benchmark.prompts.texts(prompts or params.lora.prompts), settings, params.seed, size),
        gate=classifier.probabilities,
        tissues=len(classifier.card.slugs),
        images_per_tissue=settings.images_per_tissue,
        max_attempts=settings.max_attempts if lora else 1,
        batch_size=settings.batch_size,
        seed=params.seed,
    )
    table = result.table(classifier.card.slugs)
    save_generated(Path(out), result, table, size)
    if metrics:
        counts = generation_metrics(table, classifier.card.slugs, settings.images_per_tissue)
        write_json(Path(metrics), counts)
        check_quota(counts, settings.images_per_tissue, settings.quota)


if __name__ == "__main__":
    main()
