"""`python -m pathsynth export --out FILE`: the trained LoRA as one file for ComfyUI and AUTOMATIC1111."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.errors import DataError
from pathsynth.core.params import load_params
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.diffusion.settings import BaseModelSettings
from pathsynth.synthesis.export import compute_differences, convert_to_kohya, read_adapter, write_kohya


@click.command()
@click.option("--format", type=click.Choice(["kohya"]), default="kohya", show_default=True, expose_value=False)
@click.option("--lora", type=FOLDER, default="models/lora", show_default=True, help="Folder of the stage train_lora.")
@click.option("--out", type=FILE, required=True, help="New .safetensors file.")
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True, help="Only read for DoRA.")
@run_as_command
def export(lora: Path, out: Path, params_path: Path) -> None:
    """Writes the LoRA in the format of kohya's trainer, which ComfyUI and AUTOMATIC1111 read.

    DoRA is written as differences of weights. This needs the base of params.yaml, and the file is as large as the weights that
    were trained.
    """
    if out.suffix != ".safetensors":
        raise DataError(out, "needs a name that ends with .safetensors, by which other programs find it")
    # unlike Path.exists, True for a broken link and no error for a name that is too long
    if os.path.lexists(out):
        raise DataError(out, "exists already; name a new file")
    tensors, scaling = read_adapter(lora)
    if scaling.use_dora:
        params = load_params(params_path)
        settings = params.section("base", BaseModelSettings)
        folder = locate_base(settings, params.folder)
        base = load_base(folder, "cpu", settings.variant)
        converted = compute_differences(base, lora, unet_sha256(folder, settings.variant))
    else:
        converted = convert_to_kohya(tensors, scaling)
    write_kohya(out, converted)
    layers = len({name.partition(".")[0] for name in converted})
    click.echo(f"{out}: {layers} layers, for ComfyUI's models/loras or AUTOMATIC1111's models/Lora")
