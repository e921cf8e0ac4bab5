"""Stage evaluate: scores, tables and contact sheets of one generated set."""

import click

from pathsynth.cli import options
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.cli.run_log import measure_run
from pathsynth.core.io import read_text, write_text
from pathsynth.core.metric_files import write_details
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.generated import read_sets
from pathsynth.evaluation.card_scores import fill_scores
from pathsynth.evaluation.contact_sheets import write_contact_sheets
from pathsynth.evaluation.scoring import open_references, score_sets
from pathsynth.evaluation.tables import write_tables


@click.command()
@options.params
@options.prepared
@click.option("--observed", type=FOLDER, required=True, help="Folder of the stage observe_real.")
@options.generated
@click.option("--controls", type=FOLDER, required=True, help="Folder of the stage generate_controls.")
@options.gate
@options.judge
@click.option("--metrics", type=FILE, required=True, help="Output JSON file for all scores.")
@click.option("--tables", type=FOLDER, required=True, help="Output folder for tables of images, classes and curves.")
@click.option("--plates", type=FOLDER, required=True, help="Output folder for contact sheets.")
@click.option("--card", type=FILE, required=True, help="Output file for the data set's card with its scores.")
@options.scratch
@options.logs
@run_as_command
def main(params, prepared, observed, generated, controls, gate, judge, metrics, tables, plates, card, scratch, logs):
    """Scores the generated images, and writes metrics, tables and contact sheets."""
    references = open_references(params, prepared, observed, gate, judge)
    with measure_run("evaluate", params, logs), temporary_folder(scratch) as folder:
        sets = read_sets(generated, controls, folder)
        result, sheets = score_sets(sets, params, references, folder)
        write_tables(tables, result.tables)
        write_contact_sheets(plates, sheets)
        write_text(card, fill_scores(read_text(generated / "README.md"), result.metrics))
        write_details(metrics, result.metrics)


if __name__ == "__main__":
    main()
