"""Stage report: the HTML page of one run, made of the files that the other stages have left."""

import click

from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.core.params import load_params
from pathsynth.report.render import read_report, write_report


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--metrics", type=FOLDER, required=True, help="Folder of the scores and counts.")
@click.option("--plots", type=FOLDER, required=True, help="Folder of tables, plates and curves.")
@click.option("--logs", type=FOLDER, required=True, help="Folder of what was measured while stages ran; may be empty.")
@click.option("--out", type=FILE, required=True, help="Written: the HTML report.")
@reports_errors
def main(params_path, metrics, plots, logs, out):
    """Writes the report from metrics, plots and logs."""
    write_report(out, read_report(load_params(params_path), metrics, plots, logs))


if __name__ == "__main__":
    main()
