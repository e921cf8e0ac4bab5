"""A folder that a command makes whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathsynth.core.errors import DataError
from pathsynth.core.io import reason
from pathsynth.core.scratch import temporary_folder


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder whose content is moved to `out` in the end, when all of it is there; before that `out` is as it was.

    Args:
        out: is made, or is an empty folder, which may be a link, the working directory or a mount.

    Raises:
        DataError: `out` is not empty or cannot be made.
    """
    # a mount is a disk of its own, and to another disk nothing is moved in one step
    parent = out if _is_empty(out) else out.absolute().parent
    with temporary_folder(parent) as folder:
        part = folder / "part"
        try:
            part.mkdir()
        except OSError as error:
            raise DataError(out, f"cannot be used: {reason(error)}") from error
        yield part
        try:
            # another run may have come first
            if _is_empty(out, beside=folder.name):
                for path in part.iterdir():
                    os.replace(path, out / path.name)
            else:
                os.replace(part, out)
        except OSError as error:
            raise DataError(out, f"cannot be used: {reason(error)}") from error


def _is_empty(out: Path, beside: str = "") -> bool:
    """Whether `out` is a folder with nothing in it but `beside`; False where it is not there.

    Raises:
        DataError: it has something in it, or is no folder.
    """
    try:
        if not out.exists():
            return False
        if {path.name for path in out.iterdir()} - {beside}:
            raise DataError(out, "is not empty; name a new folder")
        return True
    except OSError as error:
        raise DataError(out, f"cannot be used: {reason(error)}") from error
