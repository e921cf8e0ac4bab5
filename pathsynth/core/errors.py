"""User-facing errors: one line on stderr that names object, problem and fix, and exit code 1."""

from __future__ import annotations

import re
from typing import IO, Any

import click

from pathsynth.core.progress import close_bars

# Control characters, line separators and bidirectional formatting marks.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")


def one_line(error: BaseException, max_length: int = 300) -> str:
    """Returns a library's error message as one line of at most `max_length` characters, or its type if it has no message."""
    return (" ".join(str(error).split()) or type(error).__name__)[:max_length]


class PathsynthError(click.ClickException):
    """Base of all user-facing errors.

    Control characters in the message become spaces, because names from files could otherwise overwrite the terminal.
    """

    def __init__(self, message: str):
        super().__init__(CONTROLS.sub(" ", message))

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints the error on stderr."""
        close_bars()
        click.echo(f"error: {self.message}", file=file, err=file is None)


class ParamsError(PathsynthError):
    """An invalid value in a parameter file."""

    def __init__(self, file: object, key: str, problem: str):
        super().__init__(": ".join([str(file), *([key] if key else []), problem]))


class DataError(PathsynthError):
    """A data file that is missing, damaged, in the wrong format, or cannot be written."""

    def __init__(self, file: object, problem: str):
        super().__init__(f"{file}: {problem}")


class FetchError(PathsynthError):
    """A failed download."""

    def __init__(self, what: object, problem: str):
        super().__init__(f"{what}: {problem}")


class ModelError(PathsynthError):
    """A model folder or weights file that is incomplete or does not fit."""

    def __init__(self, where: object, problem: str):
        super().__init__(f"{where}: {problem}")


class TrainingError(PathsynthError):
    """A training that cannot continue, for example after a NaN loss."""


class OutOfMemory(PathsynthError):
    """Too little memory for the selected parameters."""

    def __init__(self, hint: str):
        super().__init__(f"out of memory: {hint}")


class DeviceError(PathsynthError):
    """A GPU that is missing or that torch cannot use, or an error of CUDA or its libraries."""


class ProcessError(PathsynthError):
    """A stage on several processes that cannot start, or in which a process failed."""


class QuotaError(PathsynthError):
    """Filtered generation with too few accepted images."""
