"""Stage train_lora: fine-tunes the base with one LoRA configuration."""

import click

from pathsynth.base_model import load_base, locate_base, unet_sha256
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.curves import Curves
from pathsynth.devices import pick_device
from pathsynth.lora import WEIGHTS, save_lora
from pathsynth.lora_card import model_card
from pathsynth.lora_draws import check_shared
from pathsynth.lora_training import train_lora
from pathsynth.measured import measured
from pathsynth.metric_files import write_details
from pathsynth.params import load_params
from pathsynth.prepared import open_prepared
from pathsynth.processes import joined, run_on
from pathsynth.resume import resumable


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
    data = open_prepared(prepared, params.benchmark_name, params.benchmark.dataset.label_names)
    check_shared(params.lora, params.processes)
    base, prompts = params.benchmark.base, params.benchmark.texts(params.lora.prompts)
    folder = locate_base(base, params_path.parent)
    if run_on(params.processes, scratch):
        return
    pipeline = load_base(folder, pick_device(params.deterministic), base.variant)
    checksum = unet_sha256(folder, base.variant)
    with (
        joined() as processes,
        resumable(scratch, "train_lora", params, [prepared, folder], processes) as saved,
        measured("train_lora", params, logs, keep=processes.main, earlier=saved.seconds),
    ):
        with Curves(curves, silent=not processes.main) as log:
            given = (pipeline, data, prompts, params.lora, params.seed, log)
            result = train_lora(*given, scratch=scratch, processes=processes, saved=saved)
        if processes.main:
            save_lora(out, pipeline.unet, params.lora, model_card(params, data, prompts, result), checksum)
            write_details(metrics, result | {"adapter_bytes": (out / WEIGHTS).stat().st_size})


if __name__ == "__main__":
    main()
