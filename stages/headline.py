"""Stage headline: the few numbers by which experiments are compared."""

import click

from pathsynth.cli.options import FILE, run_as_command
from pathsynth.core.io import write_json
from pathsynth.core.metric_files import read_details
from pathsynth.evaluation.headline import select_headline


@click.command()
@click.option("--evaluation", type=FILE, required=True, help="Scores of the stage evaluate.")
@click.option("--usefulness", type=FILE, required=True, help="Scores of the stage measure_usefulness.")
@click.option("--out", type=FILE, required=True, help="Output JSON file with one number per column.")
@run_as_command
def main(evaluation, usefulness, out):
    """Selects the headline from the detailed metrics."""
    paths = {"evaluation": evaluation, "usefulness": usefulness}
    write_json(out, select_headline({name: read_details(path) for name, path in paths.items()}))


if __name__ == "__main__":
    main()
