"""A folder that a command makes whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathsynth.errors import DataError
from pathsynth.files import reason
from pathsynth.scratch import temporary_folder


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place in the end, whole; before that `out` is as it was.

    Raises:
        DataError: `out` is not empty or cannot be made.
    """
    try:
        if out.exists() and any(out.iterdir()):
            raise DataError(out, "is not empty; name a new folder")
        with temporary_folder(out.absolute().parent) as folder:
            part = folder / "part"
            part.mkdir()
            yield part
            # of two runs into one folder the second finds it full
            os.replace(part, out)
    except OSError as error:
        full = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
        problem = "is not empty any more; name a new folder" if full else f"cannot be used: {reason(error)}"
        raise DataError(out, problem) from error
