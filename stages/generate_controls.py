"""Stage generate_controls: generates control images, without the LoRA and from paraphrased prompts."""

import click

from pathsynth.cli import options
from pathsynth.cli.options import FOLDER, run_as_command
from pathsynth.core.checkpoint import open_checkpoint, open_shared
from pathsynth.core.devices import pick_device
from pathsynth.core.distributed import init_distributed, launch
from pathsynth.data.archives import write_archive
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import attach_lora, find_snapshot
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.generation.filtering import generate_unfiltered
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import read_generation
from pathsynth.generation.slots import Slots


@click.command()
@options.params
@click.option("--lora", type=FOLDER, required=True, help="Folder of the adapter.")
@click.option("--out", type=FOLDER, required=True, help="Output folder for the images.")
@options.scratch
@run_as_command
def main(params, lora, out, scratch):
    """Generates one image per slot of each control, with the noise of the slot's first attempt."""
    settings, dataset = read_generation(params), params.section("dataset", AnyDataset)
    base, prompts = params.section("base", BaseModelSettings), params.section("prompts", Prompts)
    untuned, paraphrased = (prompts.texts(name, dataset) for name in (params.lora["prompts"], "paraphrased"))
    folder, classes = locate_base(base, params.folder), len(dataset.slugs)
    lora = find_snapshot(lora, settings.snapshot)
    if launch(params.processes, scratch):
        return
    seed, image = params.seeds.drawing, (dataset.image_size, dataset.channels)
    depends_on = {
        "sampler": settings.sampler,
        "images_per_tissue": settings.images_per_tissue,
        "image": image,
        "variant": base.variant,
    }
    with (
        init_distributed() as processes,
        open_checkpoint(
            scratch, "generate_controls", params, seed, depends_on | {"prompts": paraphrased}, [lora, folder], processes
        ) as checkpoint,
    ):
        # configurations with the same prompts share these images
        shared = open_shared(scratch, "untuned", params, seed, depends_on | {"prompts": untuned}, [folder], processes)

        def generate(name, texts, adapter, kept):
            # loaded for each set, because the sampler converts the weights, and a LoRA is merged before that
            pipeline = load_base(folder, pick_device(params.device, params.deterministic), base.variant)
            if adapter is not None:
                attach_lora(pipeline, adapter, unet_sha256(folder, base.variant))
            sampler = Sampler(pipeline, texts, settings.sampler, seed, *image, len(texts) // classes)
            slots = Slots(kept, classes, settings.images_per_tissue, dataset.image_size, seed)
            generate_unfiltered(sampler, slots, sampler.batch_size, processes)
            if processes.main:
                write_archive(out / f"{name}.npz", *slots.raw(), dataset.channels)

        generate("paraphrased", paraphrased, lora, checkpoint)
        generate("untuned", untuned, None, shared)


if __name__ == "__main__":
    main()
