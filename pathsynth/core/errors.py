"""Mistakes that a user can make, one class each; every message is one line: what, where, what is allowed."""

from __future__ import annotations

import re

# Of terminals, lines and the direction of writing.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")


def one_line(error: BaseException, most: int = 300) -> str:
    """What a library's error says, in one line of at most `most` characters; its type where it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


class PathsynthError(Exception):
    """Base of all errors that end a command with one clear line and exit code 1.

    What files and users have named may stand in the message, so line ends and other controls in it, which could write over what
    a terminal shows, become spaces.
    """

    def __init__(self, message: str):
        super().__init__(CONTROLS.sub(" ", message))


class ParamsError(PathsynthError):
    """A value in params.yaml that cannot be used."""

    def __init__(self, file: object, key: str, problem: str):
        super().__init__(f"{file}: {key}: {problem}")


class DataError(PathsynthError):
    """A data file that is missing, damaged or not in the format that was asked for."""

    def __init__(self, file: object, problem: str):
        super().__init__(f"{file}: {problem}")


class FetchError(PathsynthError):
    """Something that could not be fetched from a server."""

    def __init__(self, what: object, problem: str):
        super().__init__(f"{what}: {problem}")


class ModelError(PathsynthError):
    """A model folder or weights file that is missing a part or does not fit."""

    def __init__(self, where: object, problem: str):
        super().__init__(f"{where}: {problem}")


class TrainingError(PathsynthError):
    """A training that cannot go on, such as a loss that is no longer a number."""


class OutOfMemory(PathsynthError):
    """Too little memory for what the parameters ask for."""

    def __init__(self, remedy: str):
        super().__init__(f"out of memory: {remedy}")


class ProcessError(PathsynthError):
    """A stage on several processes that cannot start, or that one of them has ended."""


class QuotaError(PathsynthError):
    """Filtered generation that filled too few of the wanted images."""
