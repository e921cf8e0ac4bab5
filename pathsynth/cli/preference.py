"""`python -m pathsynth preference NAME=PATH NAME=PATH`: a page that asks which of two generators shows a tissue better."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from pathsynth.cli import options
from pathsynth.cli.image_pools import SELECTIONS, open_classes, open_generated, read_consent
from pathsynth.cli.new_folder import new_folder
from pathsynth.cli.options import FOLDER, run_as_command
from pathsynth.cli.study import (
    MAX_PER_TISSUE,
    MAX_SEED,
    consent_option,
    describe_page,
    seed_option,
    size_option,
    tissue_option,
    write_page,
)
from pathsynth.core.errors import CONTROLS
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.settings import AnyDataset
from pathsynth.readers.pool import choose_size
from pathsynth.readers.preference import PreferenceDesign, build_preference, render_preference

MAX_NAME = 80


def parse_sets(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """Parses NAME=PATH arguments, as a click callback."""
    sets: dict[str, Path] = {}
    for value in values:
        name, sign, path = value.partition("=")
        name = CONTROLS.sub(" ", name).strip()
        if not sign or not path or not 0 < len(name) <= MAX_NAME:
            raise click.BadParameter(f"{value!r} is not NAME=PATH with a name of 1 to {MAX_NAME} characters")
        if name in sets:
            raise click.BadParameter(f"two sets are named {name!r}")
        sets[name] = Path(path)
    if len(sets) < 2:
        raise click.BadParameter("needs at least two sets, such as r16=FOLDER r32=FOLDER")
    return sets


@click.command()
@click.argument("sets", metavar="NAME=PATH...", nargs=-1, required=True, callback=parse_sets)
@click.option("--out", type=FOLDER, required=True, help="New or empty folder for preference.html and preference_key.json.")
@click.option("-n", "n", type=click.IntRange(1, MAX_PER_TISSUE), default=5, show_default=True, help="Slots per tissue.")
@click.option(
    "--images", "selection", type=click.Choice(SELECTIONS), default="raw", show_default=True,
    help="First attempts, which have the same noise where seeds are equal, or what the gate accepted.",
)  # fmt: skip
@seed_option
@tissue_option
@size_option
@consent_option
@options.params_here
@options.scratch
@run_as_command
def preference(sets, out, n, selection, seed, tissues, size, consent, params, scratch):
    """Writes a page that shows two images of the same tissue and slot side by side, and asks which shows the tissue better.

    PATH is an output folder of generate_filtered, an archive in MedMNIST's format or a folder of images. Every pair of sets is
    compared at the same slots. preference_key.json tells which set is on which side: never hand it out with the page.
    """
    classes, dataset = open_classes(params), params.section("dataset", AnyDataset)
    with new_folder(out) as part, temporary_folder(scratch) as folder:
        # a folder for each, because archives of the same name unpack to the same file
        pools = {
            name: open_generated(path, selection, dataset, folder / str(number))
            for number, (name, path) in enumerate(sets.items())
        }
        seed = secrets.randbelow(MAX_SEED) if seed is None else seed
        design = PreferenceDesign(n, choose_size(list(pools.values()), size), seed, classes.find(tissues))
        blinded = build_preference(pools, classes, design)
        write_page(part, "preference", render_preference(blinded, classes, read_consent(consent)), blinded)
    click.echo(describe_page(out, "preference", blinded))
