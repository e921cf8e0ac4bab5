"""Atomic creation of an output folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathsynth.core.errors import DataError
from pathsynth.core.io import os_error_reason
from pathsynth.core.scratch import temporary_folder


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder, and moves it to `out` when the block succeeds; after an error `out` is unchanged.

    Args:
        out: is created, or is an empty folder, which may be a link, the working directory or a mount.

    Raises:
        DataError: if `out` is not empty or cannot be created.
    """
    try:
        exists = out.exists()
        if exists and any(out.iterdir()):
            raise DataError(out, "is not empty; name a new folder")
        # a mount cannot be replaced, so its content is moved into it
        with temporary_folder(out if exists else out.absolute().parent) as folder:
            part = folder / "part"
            part.mkdir()
            yield part
            for path in list(part.iterdir()) if exists else []:
                os.replace(path, out / path.name)
            if not exists:
                os.replace(part, out)
    except OSError as error:
        raise DataError(out, f"could not be created: {os_error_reason(error)}") from error
