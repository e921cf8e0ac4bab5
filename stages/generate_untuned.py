"""Stage generate_untuned: lets the base without a LoRA draw the same images, for comparison."""

import click

from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.core.checkpoint import resumable
from pathsynth.core.devices import pick_device
from pathsynth.core.distributed import init_distributed, launch
from pathsynth.core.params import load_params
from pathsynth.data.archives import write_archive
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.base import load_base, locate_base
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.generation.filtering import generate_unfiltered
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import GenerationSettings
from pathsynth.generation.slots import Slots


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--prompts", type=click.Choice(["plain", "described"]), required=True, help="Prompt set.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the images.")
@click.option("--scratch", type=FOLDER, default="scratch", show_default=True, help="Folder for what is needed meanwhile.")
@reports_errors
def main(params_path, prompts, out, scratch):
    """Draws one image for every slot with the seeds of the LoRAs' first attempts."""
    params = load_params(params_path)
    settings, dataset = params.section("generation", GenerationSettings), params.section("dataset", AnyDataset)
    base = params.section("base", BaseModelSettings)
    texts = params.section("prompts", Prompts).texts(prompts, dataset)
    folder = locate_base(base, params.folder)
    if launch(params.processes):
        return
    pipeline = load_base(folder, pick_device(params.deterministic), base.variant)
    sampler = Sampler(pipeline, texts, settings.sampler, params.seed, dataset.image_size, dataset.channels)
    given = {
        "seed": params.seed,
        "deterministic": params.deterministic,
        "sampler": settings.sampler,
        "images_per_tissue": settings.images_per_tissue,
        "prompts": texts,
        "image": [dataset.image_size, dataset.channels],
    }
    with (
        init_distributed() as processes,
        resumable(scratch, f"generate_untuned-{prompts}", given, [folder], processes) as saved,
    ):
        slots = Slots(saved, len(dataset.slugs), settings.images_per_tissue, dataset.image_size, params.seed)
        generate_unfiltered(sampler, slots, sampler.batch_size, processes)
        if processes.main:
            write_archive(out / "raw.npz", *slots.raw(), dataset.channels)


if __name__ == "__main__":
    main()
