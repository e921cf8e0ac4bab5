"""Measures parts of the benchmark, each against its peer on this machine: `make bench`, `python -m benchmarks --help`."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.pairs import Bench, fill, machine, markdown, write_results
from pathsynth.cli import FILE, reports_errors
from pathsynth.devices import pick_device
from pathsynth.files import write_text
from pathsynth.params import load_params

PARTS = ("lora_training", "generation", "accepted", "classifier_training", "evaluation", "prepare", "commands")
RESULTS = Path("benchmarks/results")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Rounds of both, in turns.")
@click.option("--out", type=FILE, help="Default: benchmarks/results/cpu.json, or gpu.json where there is one.")
@click.option("--fill", "page", type=FILE, help="Measure nothing; make this page's marked tables anew from benchmarks/results.")
@reports_errors
def main(parts, params_path, rounds, out, page):
    """Measures PARTS, by default all, with the benchmark and the LoRA that the parameters select, and prints a table."""
    if page:
        write_text(page, fill(page.read_text(encoding="utf-8"), RESULTS))
        return
    params, device = load_params(params_path), pick_device()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(params, params_path.parent, Path(scratch), device, rounds)
        rows = []
        for part in parts or PARTS:
            click.echo(f"measuring {part}", err=True)
            rows += importlib.import_module(f"benchmarks.{part}").measure(bench)
    out = out or RESULTS / ("cpu.json" if device == "cpu" else "gpu.json")
    write_results(out, params, {"rows": {row.part: asdict(row) for row in rows}})
    click.echo(f"{machine()}; also in {out}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
