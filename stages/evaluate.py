"""Stage evaluate: scores, tables and plates of one generated set."""

import click

from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.cli.run_log import measured
from pathsynth.core.io import read_text, write_text
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import load_params
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.generated import read_sets
from pathsynth.evaluation.card_scores import fill_scores
from pathsynth.evaluation.contact_sheets import write_plates
from pathsynth.evaluation.evaluate import write_tables
from pathsynth.evaluation.scoring import open_references, score_sets


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--prepared", type=FOLDER, required=True)
@click.option("--observed", type=FOLDER, required=True, help="Folder of the observe_real stage.")
@click.option("--generated", type=FOLDER, required=True)
@click.option("--untuned", type=FOLDER, required=True, help="Folder with one set per prompt set, `plain` and `described`.")
@click.option("--gate", type=FOLDER, required=True)
@click.option("--judge", type=FOLDER, required=True)
@click.option("--metrics", type=FILE, required=True, help="Written: all scores.")
@click.option("--tables", type=FOLDER, required=True, help="Written: tables of images, tissues and curves.")
@click.option("--plates", type=FOLDER, required=True, help="Written: a picture per tissue, the overview, the closest pairs.")
@click.option("--card", type=FILE, required=True, help="Written: the data set's card with its scores.")
@click.option("--scratch", type=FOLDER, default="scratch", show_default=True, help="Folder for what is needed meanwhile.")
@click.option("--logs", type=FOLDER, default="logs", show_default=True, help="Folder for measured times and memory.")
@reports_errors
def main(
    params_path,
    prepared,
    observed,
    generated,
    untuned,
    gate,
    judge,
    metrics,
    tables,
    plates,
    card,
    scratch,
    logs,
):
    """Scores the generated images and writes metrics and plots."""
    params = load_params(params_path)
    bench = open_references(params, prepared, observed, gate, judge)
    with measured("evaluate", params, logs), temporary_folder(scratch) as folder:
        sets = read_sets(generated, untuned / params.lora["prompts"], bench.prepared.slugs, folder)
        result, sheets = score_sets(sets, params, bench, folder)
        write_tables(tables, result)
        write_plates(plates, sheets)
        write_text(card, fill_scores(read_text(generated / "README.md"), result.metrics))
        write_details(metrics, result.metrics)


if __name__ == "__main__":
    main()
