"""`python -m pathsynth study --out FOLDER`: a blinded page of real and synthetic images, and its key."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import click

from pathsynth.cli import options
from pathsynth.cli.image_pools import find_native_size, open_classes, open_generated, open_real, read_consent
from pathsynth.cli.new_folder import new_folder
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.io import write_json, write_text
from pathsynth.core.params import Params
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.archives import SPLITS
from pathsynth.data.prepared import open_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.readers.pool import Classes, choose_size
from pathsynth.readers.study import Blinded, Classify, StudyDesign, build_study, render_study

MAX_PER_TISSUE = 1000
# The largest integer that JSON readers keep exactly.
MAX_SEED = 2**53 - 1

seed_option = click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    help="Default: drawn. Keep it secret: with the images it gives the key.",
)
tissue_option = click.option("--tissue", "tissues", multiple=True, help="Show only this tissue; repeat for several.")
size_option = click.option("--size", type=click.IntRange(8, 1024), help="Side in pixels; default: that of the images.")
consent_option = click.option("--consent", type=FILE, help="Text file for the first screen, such as your consent statement.")


@click.command()
@click.option("--out", type=FOLDER, required=True, help="New or empty folder for study.html and study_key.json.")
@click.option("-n", "n", type=click.IntRange(1, MAX_PER_TISSUE), default=10, show_default=True, help="Images per tissue.")
@click.option("--share", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Share of synthetic images.")
@click.option("--repeats", type=click.IntRange(0), default=0, show_default=True, help="Images that are shown twice.")
@seed_option
@tissue_option
@size_option
@consent_option
@click.option(
    "--generated", type=click.Path(path_type=Path), default="data/generated", show_default=True,
    help="Synthetic images: output of generate_filtered, an archive or a folder.",
)  # fmt: skip
@click.option("--prepared", type=FOLDER, default="data/prepared", show_default=True, help="Real images.")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True, help="Split of the real images.")
@click.option("--models", type=FOLDER, default="models", show_default=True, help="Folder with gate and judge, if any.")
@options.params_here
@options.scratch
@run_as_command
def study(out, n, share, repeats, seed, tissues, size, consent, generated, prepared, split, models, params, scratch):
    """Writes a page on which readers name the tissue of images and say whether they are real or synthetic.

    study.html needs no server and no network. study_key.json tells which image is which: never hand it out with the page.
    Readers save their answers as JSON files, which `python -m pathsynth readers` evaluates.
    """
    classes, dataset = open_classes(params), params.section("dataset", AnyDataset)
    with new_folder(out) as part, temporary_folder(scratch) as folder:
        real = open_real(open_prepared(prepared, params.benchmark_name, dataset.label_names), split)
        synthetic = open_generated(generated, "accepted", dataset, folder)
        side = choose_size([real, synthetic], size, find_native_size(params))
        seed = secrets.randbelow(MAX_SEED) if seed is None else seed
        design = StudyDesign(n, share, repeats, side, seed, classes.find(tissues))
        blinded = build_study(real, synthetic, classes, design, _load_observers(models, params, classes))
        write_page(part, "study", render_study(blinded, classes, read_consent(consent)), blinded)
    if side < real.side:
        click.echo(f"Images are shown at {side} px, because an image that was enlarged from that size would show it.")
    click.echo(describe_page(out, "study", blinded))


def write_page(folder: Path, kind: str, page: str, blinded: Blinded) -> None:
    """Writes the page KIND.html and its key.

    Raises:
        DataError: if a file cannot be written.
    """
    write_text(folder / f"{kind}.html", page)
    write_json(folder / f"{kind}_key.json", blinded.key)


def describe_page(out: Path, kind: str, blinded: Blinded) -> str:
    """Describes the written files in two sentences."""
    page = out / f"{kind}.html"
    count, megabytes = len(blinded.page["trials"]), page.stat().st_size / 1e6
    return f"{page}: {count} trials, {megabytes:.1f} MB. Hand out this file, and keep {out / f'{kind}_key.json'} to yourself."


def _load_observers(models: Path, params: Params, classes: Classes) -> Mapping[str, Classify]:
    """Loads gate and judge, each if its folder exists."""
    roles = [role for role in ("gate", "judge") if (models / role).is_dir()]
    if missing := [role for role in ("gate", "judge") if role not in roles]:
        click.echo(f"{models}: no {' and no '.join(missing)}, so the key has no predictions by them.", err=True)
    if not roles:
        return {}
    from pathsynth.classifiers.model import load_classifier
    from pathsynth.core.devices import pick_device

    device = pick_device(params.device, params.deterministic)
    return {role: load_classifier(models / role, device, classes.slugs).probabilities for role in roles}
