"""`python -m pathsynth leaderboard`: checks all submissions and writes the tables of leaderboard/README.md."""

from __future__ import annotations

from pathlib import Path

import click

from pathsynth.cli import options
from pathsynth.cli.options import FOLDER, run_as_command
from pathsynth.core.errors import PathsynthError
from pathsynth.core.io import read_text, write_text
from pathsynth.core.metric_files import read_details
from pathsynth.core.params import Params
from pathsynth.evaluation.scoring import open_references
from pathsynth.leaderboard.board import README, read_board, write_pin
from pathsynth.leaderboard.scores import describe_references
from pathsynth.leaderboard.table import fill_leaderboard


@click.command()
@click.option("--folder", type=FOLDER, default="leaderboard", show_default=True, help="Folder of the leaderboard.")
@click.option("--pin", is_flag=True, help="First write BENCHMARK.json from the last run; needs its data, models and anchors.")
@options.params_here
@click.option("--prepared", type=FOLDER, default="data/prepared", show_default=True)
@click.option("--observed", type=FOLDER, default="data/observed", show_default=True)
@click.option("--models", type=FOLDER, default="models", show_default=True, help="Folder with gate and judge.")
@click.option("--anchors", type=FOLDER, default="metrics/anchors", show_default=True, help="Folder of the command `anchors`.")
@run_as_command
def leaderboard(folder: Path, pin: bool, params: Params, prepared: Path, observed: Path, models: Path, anchors: Path) -> None:
    """Checks every submission and writes the tables of leaderboard/README.md.

    A submission is a folder with card.yaml and the scores.json of `python -m pathsynth score`, or scores_1.json,
    scores_2.json, ... of several trainings. It must be scored with the data set, the gate and the judge that BENCHMARK.json
    names. Prints one line for each invalid submission, and then changes nothing and exits with 1.
    """
    if pin:
        name = f"{params.benchmark_name}.json"
        opened = open_references(params, prepared, observed, models / "gate", models / "judge")
        reference = describe_references(opened, models / "gate", models / "judge", params.seeds.observers)
        write_pin(folder / name, reference, read_details(anchors / name))
    board = read_board(folder)
    for mistake in board.mistakes[:-1]:
        click.echo(f"error: {mistake}", err=True)
    if board.mistakes:
        raise PathsynthError(str(board.mistakes[-1]))
    path = folder / README
    write_text(path, fill_leaderboard(read_text(path), path, board))
    counts = f"submissions: {len(board.submissions)}, benchmarks: {len(board.pins)}"
    click.echo(f"{counts}; all are valid, and their tables are in {path}")
