"""Benchmarks parts of pathsynth against their peers on this machine: `make bench`, `python -m benchmarks --help`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.generation import compare_accepted_images, compare_generation
from benchmarks.harness import (
    RESULTS,
    Row,
    Setup,
    describe_machine,
    describe_run,
    fill_tables,
    format_rows,
    results_path,
    write_results,
)
from benchmarks.subprocesses import compare_commands, compare_prepare
from benchmarks.training import compare_classifier_training, compare_lora_training, compare_merged_adapter
from pathsynth.cli.options import FILE, run_as_command
from pathsynth.core.devices import pick_device
from pathsynth.core.io import read_json, write_text
from pathsynth.core.params import Params, load_params

PARTS: dict[str, Callable[[Setup], list[Row]]] = {
    "lora_training": compare_lora_training,
    "merged_adapter": compare_merged_adapter,
    "generation": compare_generation,
    "accepted_images": compare_accepted_images,
    "classifier_training": compare_classifier_training,
    "prepare": compare_prepare,
    "commands": compare_commands,
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Timed rounds per contestant.")
@click.option("--out", type=FILE, help="Default: speed.json in benchmarks/results, or speed_gpu.json.")
@click.option("--fill", "page", type=FILE, help="Only update the marked tables of this page from benchmarks/results.")
@run_as_command
def main(parts: tuple[str, ...], params_path: Path, rounds: int, out: Path | None, page: Path | None) -> None:
    """Benchmarks PARTS (default: all) with the selected benchmark and LoRA, and prints a table."""
    if page:
        write_text(page, fill_tables(page, RESULTS))
        click.echo(f"updated the tables of {page} from {RESULTS}")
        return
    params = load_params(params_path)
    device = pick_device(params.device)
    out = out or results_path("speed", device)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup(params, Path(scratch), device, rounds)
        for part in parts or PARTS:
            click.echo(f"measuring {part}", err=True)
            rows += PARTS[part](setup)
            # written at once, so that a part that fails later does not lose these rows
            write_results(out, params, {"rows": _merge_earlier(out, params, rows)})
    click.echo(f"{describe_machine()}; also in {out}\n\n{format_rows(rows)}")


def _merge_earlier(path: Path, params: Params, rows: list[Row]) -> dict[str, dict]:
    """The rows, after those that the file has of other parts with the same parameters, machine and versions."""
    earlier = read_json(path) if path.exists() else {}
    same = earlier.items() >= describe_run(params).items()
    return (earlier["rows"] if same else {}) | {row.part: asdict(row) for row in rows}


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
