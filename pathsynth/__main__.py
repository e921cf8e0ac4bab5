"""The commands for users: `python -m pathsynth --help`."""

from __future__ import annotations

import importlib

import click

# Name: the module that holds the command, and what the list of commands says of it; a module is imported when its turn comes.
COMMANDS = {
    "check": ("pathsynth.cli.check", "Validate params.yaml and every file under configs/."),
    "compare": ("pathsynth.cli.compare", "Compare the LoRA configurations that were run."),
    "summary": ("pathsynth.cli.summary", "Print the scores of the last run."),
    "score": ("pathsynth.cli.score", "Score any set of synthetic images as this benchmark scores its own."),
    "synthesize": ("pathsynth.cli.synthesize", "Draw images of the tissue that a sentence names, checked by the gate."),
}


class LazyGroup(click.Group):
    """Commands that cost nothing before they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        return getattr(importlib.import_module(module), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in COMMANDS.items()])


@click.command(cls=LazyGroup)
def main() -> None:
    """Draws synthetic tissue images, and scores any set of them as this benchmark scores its own."""


if __name__ == "__main__":
    main(prog_name="python -m pathsynth")
