"""Stage generate_untuned: lets the base without a LoRA draw the same images, for comparison."""

import click

from pathsynth import labels
from pathsynth.archives import write_archive
from pathsynth.base_model import load_base
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.devices import pick_device
from pathsynth.generation import Sampler, first_attempts
from pathsynth.params import beside, load_params


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--prompts", type=click.Choice(["plain", "described"]), required=True, help="Prompt set.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the images.")
@reports_errors
def main(params_path, prompts, out):
    """Draws one image for every slot with the seeds of the LoRAs' first attempts."""
    params = load_params(params_path)
    settings, size = params.benchmark.generation, params.benchmark.dataset.image_size
    pipeline = load_base(beside(params_path, params.benchmark.base.path), pick_device())
    sampler = Sampler(pipeline, params.benchmark.prompts.texts(prompts), settings, params.seed, size)
    attempts = first_attempts(len(labels.SLUGS), settings.images_per_tissue)
    write_archive(out / "raw.npz", sampler.draw_all(attempts), [attempt.tissue for attempt in attempts])


if __name__ == "__main__":
    main()
