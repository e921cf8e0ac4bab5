"""Command line: shared options, run logs, and the commands of `python -m pathsynth`."""
