"""Measures parts of the benchmark, each against its peer on this machine: `make bench`, `python -m benchmarks --help`."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.pairs import RESULTS, Bench, Row, about, fill, machine, markdown, results, write_results
from pathsynth.cli.check import Params
from pathsynth.cli.options import FILE, reports_errors
from pathsynth.core.devices import pick_device
from pathsynth.core.io import read_json, write_text
from pathsynth.core.params import load_params

PARTS = ("lora_training", "generation", "accepted", "classifier_training", "evaluation", "prepare", "commands")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Rounds of both, in turns.")
@click.option("--out", type=FILE, help="By default speed.json in benchmarks/results, or speed_gpu.json.")
@click.option("--fill", "page", type=FILE, help="Measure nothing; make this page's marked tables anew from benchmarks/results.")
@reports_errors
def main(parts, params_path, rounds, out, page):
    """Measures PARTS, by default all, with the benchmark and the LoRA that the parameters select, and prints a table."""
    if page:
        if parts or out:
            raise click.UsageError("--fill measures nothing: leave out the parts and --out")
        write_text(page, fill(page, RESULTS))
        click.echo(f"{page} has the tables of {RESULTS}")
        return
    params, device = load_params(params_path), pick_device()
    out = out or results("speed", device)
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(params, params_path.parent, Path(scratch), device, rounds)
        for part in parts or PARTS:
            click.echo(f"measuring {part}", err=True)
            rows |= {row.part: row for row in importlib.import_module(f"benchmarks.{part}").measure(bench)}
            # at once, so that a later part that fails takes nothing with it
            write_results(out, params, {"rows": _with_earlier(out, params, rows)})
    click.echo(f"{machine()}; also in {out}\n\n{markdown(list(rows.values()))}")


def _with_earlier(path: Path, params: Params, rows: dict[str, Row]) -> dict[str, dict]:
    """The rows, and those of other parts that were measured before with the same parameters, machine and versions."""
    earlier = read_json(path) if path.exists() else {}
    same = earlier.items() >= about(params).items()
    return (earlier["rows"] if same else {}) | {name: asdict(row) for name, row in rows.items()}


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
