"""Stage train_lora: fine-tunes the base with one LoRA configuration."""

import click

from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.cli.run_log import measured
from pathsynth.core.checkpoint import resumable
from pathsynth.core.curves import Curves
from pathsynth.core.devices import pick_device
from pathsynth.core.distributed import init_distributed, launch
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import load_params
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import WEIGHTS, save_lora
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.finetuning.batches import check_shared
from pathsynth.finetuning.model_card import model_card
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import train_lora


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--prepared", type=FOLDER, required=True, help="Folder of the prepare stage.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the adapter.")
@click.option("--metrics", type=FILE, required=True, help="JSON file for loss and size.")
@click.option("--curves", type=FOLDER, required=True, help="Folder for DVCLive's curves.")
@click.option("--scratch", type=FOLDER, default="scratch", show_default=True, help="Folder for what is needed meanwhile.")
@click.option("--logs", type=FOLDER, default="logs", show_default=True, help="Folder for measured times and memory.")
@reports_errors
def main(params_path, prepared, out, metrics, curves, scratch, logs):
    """Trains the selected LoRA on the train split of data/prepared."""
    params = load_params(params_path)
    dataset, base = params.section("dataset", AnyDataset), params.section("base", BaseModelSettings)
    settings = params.section("lora", LoraSettings)
    prompts = params.section("prompts", Prompts).texts(settings.prompts, dataset)
    data = open_prepared(prepared, params.benchmark_name, dataset.label_names)
    check_shared(settings, params.processes)
    folder = locate_base(base, params.folder)
    if launch(params.processes, scratch):
        return
    pipeline = load_base(folder, pick_device(params.deterministic), base.variant)
    checksum = unet_sha256(folder, base.variant)
    given = {
        "seed": params.seed,
        "deterministic": params.deterministic,
        "lora": settings,
        "base": base,
        "prompts": prompts,
    }
    with (
        init_distributed() as processes,
        resumable(scratch, "train_lora", given, [prepared, folder], processes) as saved,
        measured("train_lora", params, logs, keep=processes.main, earlier=saved.seconds),
    ):
        with Curves(curves, silent=not processes.main) as log:
            result = train_lora(
                pipeline, data, prompts, settings, params.seed, log, scratch=scratch, processes=processes, saved=saved
            )
        if processes.main:
            card = model_card(params.lora_name, params.seed, settings, base, dataset, data, result, prompts)
            save_lora(out, pipeline.unet, settings, card, checksum)
            write_details(metrics, result | {"adapter_bytes": (out / WEIGHTS).stat().st_size})


if __name__ == "__main__":
    main()
