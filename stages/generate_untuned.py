"""Stage generate_untuned: lets the base without a LoRA draw the same images, for comparison."""

import click

from pathsynth.archives import write_archive
from pathsynth.base_model import load_base, locate_base
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.devices import pick_device
from pathsynth.generation import Sampler, generate_unfiltered
from pathsynth.params import load_params
from pathsynth.processes import joined, run_on
from pathsynth.resume import resumable
from pathsynth.slots import Slots


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--prompts", type=click.Choice(["plain", "described"]), required=True, help="Prompt set.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the images.")
@click.option("--scratch", type=FOLDER, default="scratch", show_default=True, help="Folder for what is needed meanwhile.")
@reports_errors
def main(params_path, prompts, out, scratch):
    """Draws one image for every slot with the seeds of the LoRAs' first attempts."""
    params = load_params(params_path)
    settings, dataset, base = params.benchmark.generation, params.benchmark.dataset, params.benchmark.base
    folder = locate_base(base, params_path.parent)
    if run_on(params.processes):
        return
    pipeline = load_base(folder, pick_device(params.deterministic), base.variant)
    texts = params.benchmark.texts(prompts)
    sampler = Sampler(pipeline, texts, settings, params.seed, dataset.image_size, dataset.channels)
    with joined() as processes, resumable(scratch, f"generate_untuned-{prompts}", params, [folder], processes) as saved:
        slots = Slots(saved, len(dataset.slugs), settings.images_per_tissue, dataset.image_size, params.seed)
        generate_unfiltered(sampler, slots, sampler.batch_size, processes)
        if processes.main:
            write_archive(out / "raw.npz", *slots.raw(), dataset.channels)


if __name__ == "__main__":
    main()
