"""The commands for users: `python -m pathsynth --help`."""

import click

from pathsynth.score_command import score


@click.group()
def main() -> None:
    """Scores any set of synthetic images as this benchmark scores its own."""


main.add_command(score)

if __name__ == "__main__":
    main(prog_name="python -m pathsynth")
