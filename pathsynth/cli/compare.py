"""`python -m pathsynth compare`: a table and a page of the experiments that `dvc exp show` lists."""

from __future__ import annotations

from pathlib import Path

import click

from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.compare import page as compare_page
from pathsynth.compare.configurations import fold
from pathsynth.compare.experiments import OVERVIEW, UNSAVED, file_of, fill_tables, finished_runs, markdown, run_tool, table
from pathsynth.core.io import atomic_write, write_csv, write_text


@click.command()
@click.option("--save", type=FOLDER, help="Folder for experiments.csv and an overview plate per benchmark.")
@click.option("--readme", type=FILE, help="Markdown file whose marked tables are made anew from the saved experiments.csv.")
@click.option("--all-commits", is_flag=True, help="Also the experiments of earlier commits.")
@click.option("--report", type=FILE, default="reports/compare.html", show_default=True, help="The page that is written.")
@reports_errors
def compare(save: Path | None, readme: Path | None, all_commits: bool, report: Path) -> None:
    """Prints the comparison of experiments and writes its page, or makes the README's tables from the saved one."""
    if readme:
        fill_tables(readme, (save or Path("results")) / "experiments.csv")
        return
    frame = table(finished_runs(all_commits))
    for benchmark, group in frame.groupby("benchmark"):
        click.echo(f"\n{benchmark}\n{markdown(group)}")
        if save:
            plate = run_tool("git", "show", f"{fold(group.to_dict('records'))[0].runs[0]['rev']}:{OVERVIEW}")
            with atomic_write(save / f"{benchmark}.png") as part:
                part.write_bytes(plate)
    if save:
        write_csv(save / "experiments.csv", frame.drop(columns=UNSAVED))
    write_text(report, compare_page.render_comparison(frame.to_dict("records"), file_of))
    click.echo(f"open {report} in a browser")
    if len(frame) == 1:
        other = "r8" if frame.iloc[0]["lora"] != "r8" else "r16"
        click.echo(f"only one experiment is known; `dvc exp run -S lora={other}` adds one")
