"""`python -m pathsynth summary`: the scores of the last run in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.errors import DataError
from pathsynth.core.metric_files import read_details
from pathsynth.report.tables import build_class_table, build_comparison_table, build_set_table, to_text


def summary_table(evaluation: Mapping[str, Any], generation: Mapping[str, Any]) -> str:
    """Formats the scores of raw images by the judge for each class, followed by `headlines`.

    Args:
        evaluation: contents of metrics/evaluation.json.
        generation: contents of metrics/generation.json.
    """
    slugs = evaluation["sets"]["raw"]["judge"]["per_tissue"]
    table = build_class_table(evaluation, generation, {slug: slug for slug in slugs}).select_columns(0, 3, 4, 9, 11)
    return f"Raw images, classified by the judge\n\n{to_text(table)}\n\n{headlines(evaluation)}"


def headlines(evaluation: Mapping[str, Any]) -> str:
    """Formats the macro F1 of each set of images, and measures of realism and copying.

    Args:
        evaluation: contents of metrics/evaluation.json.
    """
    sets = to_text(build_set_table(evaluation).select_columns(0, 1, 2, 6))
    lines = [sets, "", to_text(build_comparison_table(evaluation))]
    per_class = evaluation["sets"]["raw"]["features"]["per_tissue"]
    if missing := [slug for slug, scores in per_class.items() if not scores["n_images"]]:
        lines += ["", f"{len(missing)} of {len(per_class)} classes have no images and count as 0: {', '.join(missing)}"]
    return "\n".join(lines)


@click.command()
@click.option("--evaluation", type=FILE, default="metrics/evaluation.json", show_default=True, help="Scores of the images.")
@click.option("--generation", type=FILE, default="metrics/generation.json", show_default=True, help="Counts of filtering.")
@click.option(
    "--plots", type=FOLDER, default="plots/evaluation", show_default=True, help="Folder of contact sheets and tables."
)
@click.option("--report", type=FILE, default="reports/report.html", show_default=True, help="The HTML report.")
@run_as_command
def summary(evaluation: Path, generation: Path, plots: Path, report: Path) -> None:
    """Prints the scores, and where to find the contact sheets and the report."""
    try:
        click.echo(summary_table(read_details(evaluation), read_details(generation)))
    except KeyError as error:
        raise DataError(evaluation, f"or {generation} has no key {error.args[0]!r}. Run the stage evaluate.") from error
    click.echo(f"\nOpen {plots / 'plates' / 'overview.png'} and, in a browser, {report}.")
