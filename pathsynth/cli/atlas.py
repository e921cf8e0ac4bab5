"""`python -m pathsynth atlas`: a page of the accepted images by class, with look-alikes and a quiz."""

from __future__ import annotations

import click

from pathsynth.atlas.content import AtlasFiles, read_atlas
from pathsynth.atlas.page import MAX_BYTES, render_atlas
from pathsynth.cli import options
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.io import write_text
from pathsynth.core.scratch import temporary_folder
from pathsynth.report.pages import size


@click.command()
@options.params_here
@click.option("--prepared", type=FOLDER, default="data/prepared", show_default=True, help="Folder of the stage prepare.")
@click.option("--generated", type=FOLDER, default="data/generated", show_default=True, help="Folder of generate_filtered.")
@click.option("--evaluation", type=FILE, default="metrics/evaluation.json", show_default=True, help="Scores of the images.")
@click.option("--tables", type=FOLDER, default="plots/evaluation", show_default=True, help="Folder with raw.csv, accepted.csv.")
@click.option("-n", "limit", type=click.IntRange(1, 500), default=50, show_default=True, help="Maximum images per class.")
@click.option("--show-real", is_flag=True, help="Show real images of an own archive or folder, whose licence is not known.")
@click.option("--out", type=FILE, default="reports/atlas.html", show_default=True, help="The page.")
@options.scratch
@run_as_command
def atlas(params, prepared, generated, evaluation, tables, limit, show_real, out, scratch):
    """Writes an atlas of the accepted images: by class, with real examples, look-alikes and a quiz.

    The page needs no other file. Real images are shown if the data set's licence allows it.

    Requires the images and scores of the last run: run `make repro` or `dvc pull` first.
    """
    files = AtlasFiles(prepared, generated, evaluation, tables)
    with temporary_folder(scratch) as folder:
        content = read_atlas(params, files, folder, limit, show_real)
        page = render_atlas(content)
    write_text(out, page)
    shown = sum(len(one.accepted) for one in content.classes)
    length = len(page.encode())
    click.echo(f"{shown} images of {len(content.classes)} {content.nouns}, {size(length)}. Open {out} in a browser.")
    if length > MAX_BYTES:
        click.echo(f"warning: the page is larger than {size(MAX_BYTES)}; show fewer images with -n", err=True)
    if content.credit is None:
        click.echo("Real images are left out: the licence of the data set is not known. --show-real shows them.")
