"""Stage generate_filtered: generates images until the gate accepts them, up to a limit of attempts."""

import click

from pathsynth.classifiers.model import load_classifier
from pathsynth.cli import options
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.cli.run_log import measure_run
from pathsynth.core.checkpoint import open_checkpoint
from pathsynth.core.devices import pick_device
from pathsynth.core.distributed import init_distributed, launch
from pathsynth.core.io import write_text
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import describe_lora
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import attach_lora, find_snapshot
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.generation.dataset_card import Recipe, dataset_card
from pathsynth.generation.filtering import check_quota, generate_filtered, generation_metrics, save_generated
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import read_generation
from pathsynth.generation.slots import Slots


@click.command()
@options.params
@click.option("--lora", type=FOLDER, required=True, help="Folder of the adapter.")
@options.gate
@click.option("--out", type=FOLDER, required=True, help="Output folder for images, table of attempts and card.")
@click.option("--metrics", type=FILE, required=True, help="Output JSON file for the counts.")
@options.scratch
@options.logs
@run_as_command
def main(params, lora, gate, out, metrics, scratch, logs):
    """Generates the requested number of images per class, with a limited number of attempts per image."""
    seed = params.seeds.drawing
    settings, dataset = read_generation(params), params.section("dataset", AnyDataset)
    base, prompt_set = params.section("base", BaseModelSettings), params.lora["prompts"]
    prompts = params.section("prompts", Prompts).texts(prompt_set, dataset)
    folder, per_class, limits = locate_base(base, params.folder), settings.images_per_tissue, settings.filter
    lora = find_snapshot(lora, settings.snapshot)
    if launch(params.processes, scratch):
        return
    # without the quota, which does not affect the images; the snapshot is an input
    sampling = settings.model_dump(exclude={"filter": {"quota"}, "snapshot": True})
    image = [dataset.image_size, dataset.channels]
    depends_on = {"generation": sampling, "prompts": prompts, "image": image, "variant": base.variant}
    with (
        init_distributed() as processes,
        open_checkpoint(scratch, "generate_filtered", params, seed, depends_on, [lora, gate, folder], processes) as checkpoint,
    ):
        with measure_run("generate_filtered", params, logs, keep=processes.main, earlier=checkpoint.seconds):
            classifier = load_classifier(gate, pick_device(params.device, params.deterministic), dataset.slugs)
            pipeline = load_base(folder, pick_device(params.device, params.deterministic), base.variant)
            attach_lora(pipeline, lora, unet_sha256(folder, base.variant))
            sampler = Sampler(pipeline, prompts, settings.sampler, seed, dataset.image_size, dataset.channels)
            slots = Slots(checkpoint, len(dataset.slugs), per_class, dataset.image_size, seed)
            generate_filtered(sampler, classifier.probabilities, slots, limits.max_attempts, sampler.batch_size, processes)
            counts = None
            if processes.main:
                table = slots.table(dataset.slugs)
                counts = generation_metrics(table, dataset.slugs, per_class)
                save_generated(out, slots, table, dataset.channels)
                recipe = Recipe(
                    benchmark=params.benchmark_name,
                    lora=describe_lora(params.lora_name, settings.snapshot),
                    seed=seed,
                    prompt_set=prompt_set,
                    prompts=prompts,
                    gate=classifier.card.architecture,
                    dataset=dataset,
                    base=base,
                    generation=settings,
                )
                write_text(out / "README.md", dataset_card(recipe, counts))
                write_details(metrics, counts)
        # in every process, so that no process waits for one that has failed
        check_quota(processes.gather(counts)[0], per_class, limits.quota)


if __name__ == "__main__":
    main()
