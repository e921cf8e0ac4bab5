"""Stage train_lora: fine-tunes the base with one LoRA configuration."""

import click

from pathsynth.cli import options
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.cli.run_log import measure_run
from pathsynth.core.checkpoint import open_checkpoint
from pathsynth.core.curves import Curves
from pathsynth.core.devices import pick_device
from pathsynth.core.distributed import init_distributed, launch
from pathsynth.core.metric_files import write_details
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import SNAPSHOTS, WEIGHTS, clear_lora, save_lora
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.finetuning.batches import check_process_count
from pathsynth.finetuning.model_card import LoraRecipe, model_card
from pathsynth.finetuning.recorder import Records
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import train_lora


@click.command()
@options.params
@options.prepared
@click.option("--out", type=FOLDER, required=True, help="Output folder for the adapter.")
@click.option("--metrics", type=FILE, required=True, help="Output JSON file for loss and size.")
@options.curves
@click.option("--sheets", type=FOLDER, required=True, help="Output folder for sheets of images sampled during training.")
@options.scratch
@options.logs
@run_as_command
def main(params, prepared, out, metrics, curves, sheets, scratch, logs):
    """Trains the selected LoRA on the train split."""
    seed = params.seeds.training
    dataset, base = params.section("dataset", AnyDataset), params.section("base", BaseModelSettings)
    settings = params.section("lora", LoraSettings)
    prompts = params.section("prompts", Prompts).texts(settings.prompts, dataset)
    data = open_prepared(prepared, params.benchmark_name, dataset.label_names)
    check_process_count(settings, params.processes)
    folder = locate_base(base, params.folder)
    if launch(params.processes, scratch):
        return
    depends_on = {"lora": settings, "base": base, "prompts": prompts}
    with (
        init_distributed() as processes,
        open_checkpoint(scratch, "train_lora", params, seed, depends_on, [prepared, folder], processes) as checkpoint,
        measure_run("train_lora", params, logs, keep=processes.main, earlier=checkpoint.seconds),
    ):
        pipeline = load_base(folder, pick_device(params.device, params.deterministic), base.variant)
        recipe = LoraRecipe(params.lora_name, settings, base, dataset, prompts, seed)
        checksum = unet_sha256(folder, base.variant)

        def save_snapshot(step, result):
            save_lora(out / SNAPSHOTS / str(step), pipeline.unet, settings, model_card(recipe, data, result, step), checksum)

        if processes.main:
            clear_lora(out)
        with Curves(curves, silent=not processes.main) as log:
            shared = {"scratch": scratch, "processes": processes, "checkpoint": checkpoint}
            result = train_lora(pipeline, data, prompts, settings, seed, log, records=Records(sheets, save_snapshot), **shared)
        if processes.main:
            save_lora(out, pipeline.unet, settings, model_card(recipe, data, result), checksum)
            write_details(metrics, result | {"adapter_bytes": (out / WEIGHTS).stat().st_size})


if __name__ == "__main__":
    main()
