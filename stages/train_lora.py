"""Stage train_lora: fine-tunes the base with one LoRA configuration."""

import click

from pathsynth.base_model import load_base
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.curves import Curves
from pathsynth.devices import pick_device
from pathsynth.files import write_json
from pathsynth.lora import save_lora
from pathsynth.lora_card import model_card
from pathsynth.lora_training import train_lora
from pathsynth.params import beside, load_params
from pathsynth.prepared import open_prepared


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--prepared", type=FOLDER, required=True, help="Folder of the prepare stage.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the adapter.")
@click.option("--metrics", type=FILE, required=True, help="JSON file for loss and size.")
@click.option("--curves", type=FOLDER, required=True, help="Folder for DVCLive's curves.")
@reports_errors
def main(params_path, prepared, out, metrics, curves):
    """Trains the selected LoRA on the train split of data/prepared."""
    params = load_params(params_path)
    prompts = params.benchmark.prompts.texts(params.lora.prompts)
    data = open_prepared(prepared)
    pipeline = load_base(beside(params_path, params.benchmark.base.path), pick_device())
    with Curves(curves) as log:
        result = train_lora(pipeline, data, prompts, params.lora, params.seed, log)
    save_lora(out, pipeline.unet, params.lora, model_card(params, data, prompts, result))
    write_json(metrics, result)


if __name__ == "__main__":
    main()
