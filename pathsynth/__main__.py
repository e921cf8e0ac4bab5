"""The commands for users: `python -m pathsynth --help`."""

from __future__ import annotations

import click

from pathsynth.cli.anchors import anchors
from pathsynth.cli.check import check
from pathsynth.cli.compare import compare
from pathsynth.cli.export import export
from pathsynth.cli.score import score
from pathsynth.cli.summary import summary
from pathsynth.cli.synthesize import synthesize


@click.group(commands=[anchors, check, compare, summary, score, synthesize, export])
def main() -> None:
    """Generates synthetic tissue images, and scores any set of them like the benchmark's own."""


if __name__ == "__main__":
    main(prog_name="python -m pathsynth")
