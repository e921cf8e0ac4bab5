"""Stage generate_filtered: draws images, has the gate check each, and tries rejected ones again."""

import click

from pathsynth.classifiers.model import load_classifier
from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.cli.run_log import measured
from pathsynth.core.checkpoint import resumable
from pathsynth.core.devices import pick_device
from pathsynth.core.distributed import init_distributed, launch
from pathsynth.core.io import write_text
from pathsynth.core.metric_files import read_details, write_details
from pathsynth.core.params import load_params
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import attach_lora
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.generation.dataset_card import Recipe, dataset_card
from pathsynth.generation.filtering import check_quota, generate_filtered, generation_metrics, save_generated
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import GenerationSettings
from pathsynth.generation.slots import Slots


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
    settings, dataset = params.section("generation", GenerationSettings), params.section("dataset", AnyDataset)
    base, prompt_set = params.section("base", BaseModelSettings), params.lora["prompts"]
    prompts = params.section("prompts", Prompts).texts(prompt_set, dataset)
    folder = locate_base(base, params.folder)
    if launch(params.processes):
        return
    classifier = load_classifier(gate, pick_device(params.deterministic), dataset.slugs)
    pipeline = load_base(folder, pick_device(params.deterministic), base.variant)
    attach_lora(pipeline, lora, unet_sha256(folder, base.variant))
    gate_scores = read_details(gate_metrics)
    recipe = Recipe(
        params.benchmark_name,
        params.lora_name,
        params.seed,
        prompt_set,
        prompts,
        classifier.card.architecture,
        dataset,
        base,
        settings,
    )
    sampler = Sampler(pipeline, prompts, settings.sampler, params.seed, dataset.image_size, dataset.channels)
    given = {
        "seed": params.seed,
        "deterministic": params.deterministic,
        # what was drawn is kept for another quota
        "generation": settings.model_dump(exclude={"quota"}),
        "prompts": prompts,
        "image": [dataset.image_size, dataset.channels],
    }
    with (
        init_distributed() as processes,
        resumable(scratch, "generate_filtered", given, [lora, gate, folder], processes) as saved,
    ):
        with measured("generate_filtered", params, logs, keep=processes.main, earlier=saved.seconds):
            slots = Slots(saved, len(dataset.slugs), settings.images_per_tissue, dataset.image_size, params.seed)
            generate_filtered(sampler, classifier.probabilities, slots, settings.max_attempts, sampler.batch_size, processes)
            counts = None
            if processes.main:
                table = slots.table(dataset.slugs)
                counts = generation_metrics(table, dataset.slugs, settings.images_per_tissue)
                save_generated(out, slots, table, dataset.channels)
                write_text(out / "README.md", dataset_card(recipe, counts, gate_scores))
                write_details(metrics, counts)
        # by all, so that none waits for one that has ended
        check_quota(processes.gather(counts)[0], settings.images_per_tissue, settings.quota)


if __name__ == "__main__":
    main()
