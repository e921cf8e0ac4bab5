"""Stage measure_memorisation: compares the denoising losses of training and validation images, with and without LoRA."""

import click
import numpy as np

from pathsynth.cli import options
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.cli.run_log import measure_run
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import PositiveInt
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import attach_lora, find_snapshot
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.diffusion.denoising import denoising_losses, encode_latents
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.evaluation.memorisation import TIMESTEPS, memorisation_scores, select_images


@click.command()
@options.params
@options.prepared
@click.option("--lora", type=FOLDER, required=True, help="Folder of the adapter.")
@click.option("--out", type=FILE, required=True, help="Output JSON file for the scores.")
@options.logs
@run_as_command
def main(params, prepared, lora, out, logs):
    """Measures the memorisation gap of the base and of the LoRA, with the prompts that the LoRA was trained with."""
    dataset, base = params.section("dataset", AnyDataset), params.section("base", BaseModelSettings)
    prompts = params.section("prompts", Prompts).texts(params.lora["prompts"], dataset)
    lora = find_snapshot(lora, params.section("generation.snapshot", PositiveInt | None))
    data = open_prepared(prepared, params.benchmark_name, dataset.label_names)
    folder, seed = locate_base(base, params.folder), params.seeds.observers
    with measure_run("measure_memorisation", params, logs):
        train, val = select_images(data.labels_of("train"), data.labels_of("val"), len(data.slugs), seed)
        labels = np.concatenate([data.labels_of("train")[train], data.labels_of("val")[val]])
        images = np.concatenate([data.images("train")[train], data.images("val")[val]])
        pipeline = load_base(folder, pick_device(params.device, params.deterministic), base.variant)
        latents = encode_latents(pipeline, images)

        def measure() -> dict:
            losses, n = denoising_losses(pipeline, latents, labels, prompts, seed, TIMESTEPS), len(train)
            return memorisation_scores(losses[:n], losses[n:], labels[:n], labels[n:], seed)

        without_lora = measure()
        attach_lora(pipeline, lora, unet_sha256(folder, base.variant))
        counts = {"n_train": len(train), "n_val": len(val), "timesteps": TIMESTEPS}
        write_details(out, {"lora": measure(), "base": without_lora, **counts})


if __name__ == "__main__":
    main()
