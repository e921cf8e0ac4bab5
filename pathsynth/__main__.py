"""The commands for users: `python -m pathsynth --help`."""

from __future__ import annotations

import click

from pathsynth.cli.anchors import anchors
from pathsynth.cli.app import app
from pathsynth.cli.atlas import atlas
from pathsynth.cli.check import check
from pathsynth.cli.compare import compare
from pathsynth.cli.export import export
from pathsynth.cli.leaderboard import leaderboard
from pathsynth.cli.preference import preference
from pathsynth.cli.readers import readers
from pathsynth.cli.score import score
from pathsynth.cli.study import study
from pathsynth.cli.summary import summary
from pathsynth.cli.synthesize import synthesize

COMMANDS = [
    anchors, check, compare, summary, score, leaderboard, synthesize, app, export, atlas, study, preference, readers,
]  # fmt: skip


@click.group(commands=COMMANDS)
def main() -> None:
    """Generates synthetic tissue images, and scores any set of them like the benchmark's own."""


if __name__ == "__main__":
    main(prog_name="python -m pathsynth")
