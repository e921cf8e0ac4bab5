"""`python -m pathsynth readers FILES --key KEY`: evaluates the answers of a reader study or of a page of preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pathsynth.cli.new_folder import new_folder
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.io import write_csv, write_json, write_text
from pathsynth.report.tables import to_text

# One image has no variance, and so no interval.
MIN_IMAGES = 2
MAX_READERS, MAX_IMAGES, MAX_SIMULATIONS = 1000, 10_000, 10_000


def parse_counts(low: int, high: int):
    """Returns a click callback that parses a list of integers from `low` to `high`, such as `1,3,5`."""

    def parse(_: click.Context, __: click.Parameter, text: str) -> list[int]:
        try:
            counts = [int(part) for part in text.split(",")]
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not a list of integers such as 1,3,5") from error
        if not all(low <= count <= high for count in counts):
            raise click.BadParameter(f"{text}: allowed are {low} to {high:,}")
        return counts

    return parse


@click.command()
@click.argument("files", nargs=-1, type=FILE)
@click.option("--key", type=FILE, help="The key that was written with the page.")
@click.option("--out", type=FOLDER, help="New or empty folder for readers.html, readers.csv and readers.json.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the resampling.")
@click.option("--power", is_flag=True, help="Only show how wide an interval becomes with how many readers and images.")
@click.option("--readers", default="1,3,5,10,20", show_default=True, callback=parse_counts(1, MAX_READERS), help="For --power.")
@click.option(
    "--images", default="45,90,180", show_default=True, callback=parse_counts(MIN_IMAGES, MAX_IMAGES),
    help="Synthetic ones, for --power.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(0.01, 0.99), default=0.5, show_default=True,
    help="Share of synthetic images taken for real, for --power.",
)  # fmt: skip
@click.option(
    "--reader-sd", type=click.FloatRange(0, 5), default=0.5, show_default=True,
    help="Standard deviation between readers on the logit scale, for --power.",
)  # fmt: skip
@click.option(
    "--image-sd", type=click.FloatRange(0, 5), default=0.5, show_default=True, help="The same between images, for --power."
)
@click.option(
    "--simulations", type=click.IntRange(1, MAX_SIMULATIONS), default=100, show_default=True, help="Of each cell, for --power."
)
@run_as_command
def readers(files, key, out, seed, power, readers, images, rate, reader_sd, image_sd, simulations):
    """Evaluates FILES, the answers that the pages of `study` and `preference` saved.

    Prints the main scores; --out also writes a page with tables and charts, all answers as CSV and all scores as JSON.
    """
    if power:
        if files or key or out:
            raise click.UsageError("--power simulates, and takes neither FILES nor --key nor --out")
        _show_power(rate, reader_sd, image_sd, readers, images, simulations, seed)
        return
    if not files or key is None:
        raise click.UsageError("FILES and --key are required, for example: answers/*.json --key study_key.json")
    from pathsynth.readers.answers import collect_answers
    from pathsynth.readers.results import evaluate_answers

    found, collection = collect_answers(files, key)
    results = evaluate_answers(found, collection, seed)
    if out:
        _write_results(out, results, found, collection.readers)
    click.echo(format_results(results))
    if out:
        click.echo(f"\nOpen {out / 'readers.html'} in a browser.")


def _write_results(out: Path, results: Mapping[str, Any], key: Any, answers: Sequence[Any]) -> None:
    from pathsynth.readers.long_table import build_long_table
    from pathsynth.readers.results_page import render_results

    with new_folder(out) as part:
        write_text(part / "readers.html", render_results(results))
        write_csv(part / "readers.csv", build_long_table(key, answers))
        write_json(part / "readers.json", dict(results))


def format_results(results: Mapping[str, Any]) -> str:
    """Formats the main scores for a terminal."""
    from pathsynth.readers import preference_tables, tables

    counts = results["counts"]
    lines = [f"{name}: {counts[name]:,}" for name in counts]
    parts = [", ".join(lines), *results["notes"]]
    if results["kind"] == "study":
        parts += [to_text(tables.build_summary_table(results))]
    elif "undefined" in results["ranking"]:
        parts += [f"No common ranking: {results['ranking']['undefined']}."]
    else:
        parts += [to_text(preference_tables.build_ranking_table(results["ranking"]))]
        if results["ranking"]["regularised"]:
            parts += ["Half a win was added to both sides of each pair, because a configuration won or lost all comparisons."]
    return "\n\n".join([*parts, f"Intervals are {results['interval']}."])


def _show_power(rate, reader_sd, image_sd, readers, images, simulations, seed) -> None:
    from pathsynth.readers.power import simulate_power
    from pathsynth.readers.tables import build_power_table

    rows = simulate_power(rate, reader_sd, image_sd, readers, images, simulations, seed)
    click.echo('Width of the 95 % interval of "synthetic taken for real", and how often the interval covers the truth\n')
    click.echo(to_text(build_power_table(rows)))
    spread = f"standard deviation between readers {reader_sd:g} and between images {image_sd:g} (logit)"
    click.echo(f"\nAssumed: share {rate:g}, {spread}; {simulations:,} studies per cell. One reader: covers other images only.")
