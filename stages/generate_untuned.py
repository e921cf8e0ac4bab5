"""Stage generate_untuned: generates images for the same prompts and seeds with the base model, without LoRA."""

import click

from pathsynth.cli import options
from pathsynth.cli.options import FOLDER, exit_on_sigterm
from pathsynth.core.checkpoint import open_checkpoint
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
@options.params
@click.option("--prompts", type=click.Choice(["plain", "described"]), required=True, help="Prompt set.")
@click.option("--out", type=FOLDER, required=True, help="Output folder for the images.")
@options.scratch
@exit_on_sigterm
def main(params_path, prompts, out, scratch):
    """Generates one image per slot, with the same seeds as the first attempts of a LoRA."""
    params = load_params(params_path)
    settings, dataset = params.section("generation", GenerationSettings), params.section("dataset", AnyDataset)
    base = params.section("base", BaseModelSettings)
    texts = params.section("prompts", Prompts).texts(prompts, dataset)
    folder, per_class = locate_base(base, params.folder), settings.images_per_tissue
    if launch(params.processes, scratch):
        return
    image = [dataset.image_size, dataset.channels]
    depends_on = {"sampler": settings.sampler, "images_per_tissue": per_class, "prompts": texts, "image": image}
    with (
        init_distributed() as processes,
        open_checkpoint(scratch, f"generate_untuned-{prompts}", params, depends_on, [folder], processes) as checkpoint,
    ):
        pipeline = load_base(folder, pick_device(params.deterministic), base.variant)
        sampler = Sampler(pipeline, texts, settings.sampler, params.seed, dataset.image_size, dataset.channels)
        slots = Slots(checkpoint, len(dataset.slugs), per_class, dataset.image_size, params.seed)
        generate_unfiltered(sampler, slots, sampler.batch_size, processes)
        if processes.main:
            write_archive(out / "raw.npz", *slots.raw(), dataset.channels)


if __name__ == "__main__":
    main()
