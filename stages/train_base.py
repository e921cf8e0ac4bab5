"""Stage train_base: rebuilds the bundled base from nothing; run through base/dvc.yaml, which is frozen."""

import click

from pathsynth.bundled_base.settings import BaseSettings
from pathsynth.bundled_base.training import train_base
from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.core.devices import pick_device
from pathsynth.core.io import write_json
from pathsynth.core.params import read_yaml, validate


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="base/params.yaml")
@click.option("--out", type=FOLDER, required=True, help="Folder for the pipeline, in diffusers' layout.")
@click.option("--metrics", type=FILE, required=True, help="JSON file for reconstruction error and sizes.")
@reports_errors
def main(params_path, out, metrics):
    """Draws textures, trains VAE, text encoder and UNet on them, and saves a Stable Diffusion pipeline."""
    settings = validate(params_path, "base", BaseSettings, read_yaml(params_path))
    write_json(metrics, train_base(settings, out, pick_device()))


if __name__ == "__main__":
    main()
