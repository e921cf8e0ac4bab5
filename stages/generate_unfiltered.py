"""Stages generate_untuned and generate_paraphrased: generate images without a gate, by the base alone or with a LoRA."""

import click

from pathsynth.cli import options
from pathsynth.cli.options import FOLDER, run_as_command
from pathsynth.core.checkpoint import open_checkpoint
from pathsynth.core.devices import pick_device
from pathsynth.core.distributed import init_distributed, launch
from pathsynth.data.archives import write_archive
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import attach_lora, find_snapshot
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.generation.filtering import generate_unfiltered
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import GenerationSettings, read_generation
from pathsynth.generation.slots import Slots


@click.command()
@options.params
@click.option("--prompts", type=click.Choice(["plain", "described", "paraphrased"]), required=True, help="Prompt set.")
@click.option("--lora", type=FOLDER, help="Folder of the adapter; without it the base alone generates.")
@click.option("--out", type=FOLDER, required=True, help="Output folder for the images.")
@options.scratch
@run_as_command
def main(params, prompts, lora, out, scratch):
    """Generates one image per slot, with the same noise as the first attempts of generate_filtered."""
    # untuned images are shared by all LoRA configurations
    settings = read_generation(params) if lora else params.section("generation", GenerationSettings)
    dataset = params.section("dataset", AnyDataset)
    base = params.section("base", BaseModelSettings)
    texts = params.section("prompts", Prompts).texts(prompts, dataset)
    folder, per_class = locate_base(base, params.folder), settings.images_per_tissue
    if lora is not None:
        lora = find_snapshot(lora, settings.snapshot)
    if launch(params.processes, scratch):
        return
    image = [dataset.image_size, dataset.channels]
    seed, inputs = params.seeds.drawing, [folder] if lora is None else [lora, folder]
    depends_on = {"sampler": settings.sampler, "images_per_tissue": per_class, "prompts": texts, "image": image}
    with (
        init_distributed() as processes,
        open_checkpoint(scratch, f"generate_unfiltered-{prompts}", params, seed, depends_on, inputs, processes) as checkpoint,
    ):
        pipeline = load_base(folder, pick_device(params.device, params.deterministic), base.variant)
        if lora is not None:
            attach_lora(pipeline, lora, unet_sha256(folder, base.variant))
        per_tissue = len(texts) // len(dataset.slugs)
        sampler = Sampler(pipeline, texts, settings.sampler, seed, dataset.image_size, dataset.channels, per_tissue)
        slots = Slots(checkpoint, len(dataset.slugs), per_class, dataset.image_size, seed)
        generate_unfiltered(sampler, slots, sampler.batch_size, processes)
        if processes.main:
            write_archive(out / "raw.npz", *slots.raw(), dataset.channels)


if __name__ == "__main__":
    main()
