"""Trains the bundled base from scratch: `make base`. Not a stage of dvc.yaml, so no run can replace the base."""

import click

from pathsynth.bundled_base.settings import BaseSettings
from pathsynth.bundled_base.training import train_base
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import read_yaml, validate


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="base/params.yaml")
@click.option("--out", type=FOLDER, required=True, help="Output folder for the pipeline in diffusers' layout.")
@click.option("--metrics", type=FILE, required=True, help="Output JSON file for reconstruction error and sizes.")
@run_as_command
def main(params_path, out, metrics):
    """Generates textures, trains VAE, text encoder and UNet on them, and saves a Stable Diffusion pipeline."""
    settings = validate(params_path, "base", BaseSettings, read_yaml(params_path))
    write_details(metrics, train_base(settings, out, pick_device("auto")))


if __name__ == "__main__":
    main()
