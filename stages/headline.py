"""Stage headline: the few numbers of a run by which experiments are compared."""

import click

from pathsynth.cli.options import FILE, reports_errors
from pathsynth.core.io import write_json
from pathsynth.core.metric_files import read_details
from pathsynth.evaluation.headline import headline


@click.command()
@click.option("--evaluation", type=FILE, required=True, help="Scores of the stage evaluate.")
@click.option("--generation", type=FILE, required=True, help="Counts of the stage generate_filtered.")
@click.option("--usefulness", type=FILE, required=True, help="Scores of the stage measure_usefulness.")
@click.option("--out", type=FILE, required=True, help="Written: JSON file with one number per column.")
@reports_errors
def main(evaluation, generation, usefulness, out):
    """Takes the headline out of the details."""
    paths = {"evaluation": evaluation, "generation": generation, "usefulness": usefulness}
    write_json(out, headline({name: read_details(path) for name, path in paths.items()}))


if __name__ == "__main__":
    main()
