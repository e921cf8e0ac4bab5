"""Stage report: the HTML report of one run, rendered from the files of the other stages."""

import click

from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.params import load_params
from pathsynth.report.render import read_report, write_report


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--metrics", type=FOLDER, required=True, help="Folder of scores and counts.")
@click.option("--plots", type=FOLDER, required=True, help="Folder of tables, contact sheets and curves.")
@click.option("--logs", type=FOLDER, required=True, help="Folder of run times and memory use; may be empty.")
@click.option("--anchors", type=FOLDER, required=True, help="Folder of the anchors' scores; may be empty.")
@click.option("--out", type=FILE, required=True, help="Output HTML file.")
@run_as_command
def main(params_path, metrics, plots, logs, anchors, out):
    """Renders the report from metrics, plots and logs."""
    write_report(out, read_report(load_params(params_path), metrics, plots, logs, anchors))


if __name__ == "__main__":
    main()
