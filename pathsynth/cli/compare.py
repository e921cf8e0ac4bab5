"""`python -m pathsynth compare`: a table and a page of the experiments that DVC knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.compare import table
from pathsynth.compare.differences import RULE, compare_configurations
from pathsynth.compare.experiments import collect_runs
from pathsynth.compare.markdown import fill_tables
from pathsynth.compare.page import render_comparison
from pathsynth.compare.project import open_project
from pathsynth.core.io import atomic_write, read_text, write_text
from pathsynth.report.tables import to_text

if TYPE_CHECKING:
    import pandas as pd

OVERVIEW = "plots/evaluation/plates/overview.png"
SAVED_RUNS = "experiments.csv"


@click.command()
@click.option("--save", type=FOLDER, help="Also write experiments.csv and the best overview of each benchmark to this folder.")
@click.option("--fill", type=FILE, multiple=True, help="Only rewrite the tables between marks in this Markdown file.")
@click.option("--all-commits", is_flag=True, help="Also compare experiments of earlier commits.")
@click.option(
    "--slots", type=click.IntRange(0, 100), default=3, show_default=True, help="Slots per tissue to show image by image."
)
@click.option("--report", type=FILE, default="reports/compare.html", show_default=True, help="The page.")
@run_as_command
def compare(save: Path | None, fill: tuple[Path, ...], all_commits: bool, slots: int, report: Path) -> None:
    """Compares experiments: means over trainings in the terminal, and a page of tests, charts and images.

    With --fill, tables in Markdown files are written from results/experiments.csv (or the --save folder) and metrics.
    """
    if fill:
        saved = table.read_saved((save or Path("results")) / SAVED_RUNS)
        for path in fill:
            write_text(path, fill_tables(read_text(path), path, saved, Path()))
        return
    with open_project() as project:
        read = project.read
        runs = collect_runs(read, all_commits)
        page = render_comparison(runs, read, project.find_cached, slots)
        bests = [table.group_trainings(group)[0] for _, group in runs.groupby("benchmark")]
        overviews = {str(best["benchmark"]): read(best.runs["rev"].iloc[0], OVERVIEW) for best in bests}
    for benchmark, group in runs.groupby("benchmark"):
        configurations = table.group_trainings(group)
        click.echo(f"\n{benchmark}\n{to_text(table.build_table(configurations, short=True))}")
        differences, untested = compare_configurations(configurations)
        if differences:
            click.echo(f"\n{to_text(differences)}")
        if untested:
            click.echo(untested)
    if save:
        _save(save, runs, overviews)
    write_text(report, page)
    click.echo(f"\n{RULE}\nOpen {report} in a browser.")
    if runs["config"].is_unique:
        command = "dvc exp run --queue -S seeds.training=1,2,3,4,5"
        click.echo(f"One training is no result. Add trainings with `{command}` and `dvc queue start -j 1`.")


def _save(folder: Path, runs: pd.DataFrame, overviews: Mapping[str, bytes | None]) -> None:
    table.save(folder / SAVED_RUNS, runs)
    for benchmark, overview in overviews.items():
        if overview:
            with atomic_write(folder / f"{benchmark}.png") as part:
                part.write_bytes(overview)
