"""Trains the bundled base: `make base`. Not a stage of dvc.yaml, so no run can replace the base."""

import hashlib
import shutil

import click

from pathsynth.bundled_base.recognition import recognise_motifs
from pathsynth.bundled_base.settings import BaseSettings
from pathsynth.bundled_base.training import train_base
from pathsynth.cli import options
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import read_yaml, validate
from pathsynth.diffusion.base import load_base, unet_sha256


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="base/params.yaml")
@click.option("--out", type=FOLDER, required=True, help="Output folder for the pipeline in diffusers' layout.")
@click.option("--metrics", type=FILE, required=True, help="Output JSON file for errors, recognised motifs and sizes.")
@click.option("--start", type=FOLDER, help="A base to train further; without it, training starts with random weights.")
@options.scratch
@run_as_command
def main(params_path, out, metrics, start, scratch):
    """Generates textures, trains VAE, text encoder and UNet on them, and saves a Stable Diffusion pipeline.

    An interrupted training resumes, on any machine to which the folder with its checkpoint is copied.
    """
    settings = validate(params_path, "base", BaseSettings, read_yaml(params_path))
    depends_on = f"{settings.model_dump_json()} {start and unet_sha256(start)}"
    folder = scratch / "resume" / f"train_base-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}"
    scores = train_base(settings, out, device := pick_device("auto"), Checkpoint(folder), start)
    write_details(metrics, scores | {"recognised": recognise_motifs(load_base(out, device), settings.seed)})
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
