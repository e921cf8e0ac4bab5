"""Temporary directories."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pathsynth.core.errors import DataError
from pathsynth.core.io import os_error_reason

# Where DVC runs the experiments of `--temp` and `--queue`, within its repository.
EXPERIMENTS = (".dvc", "tmp", "exps")
# Seconds after which an unused folder is removed.
MAX_AGE = 7 * 86_400


def resolve_scratch(path: Path) -> Path:
    """Resolves a relative scratch folder, in a temporary copy of the repository against the repository itself.

    DVC runs an experiment of `--temp` or `--queue` in a copy with a random name, where a later run would find no checkpoint.
    """
    folder = Path.cwd()
    for copy in (folder, *folder.parents):
        if (copy / ".dvc").is_dir():
            for parent in copy.parents:
                if parent.parts[-len(EXPERIMENTS) :] == EXPERIMENTS:
                    return parent.parents[len(EXPERIMENTS) - 1] / folder.relative_to(copy) / path
            break
    return path


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Creates a folder under `parent`, which is made if it is missing, and removes it when the block ends.

    Raises:
        DataError: if it cannot be created.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        created = tempfile.TemporaryDirectory(prefix="pathsynth-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise DataError(parent, f"a temporary folder could not be created: {os_error_reason(error)}") from error
    with created as folder:
        yield Path(folder)


def remove_abandoned(parent: Path) -> None:
    """Removes the folders in `parent` that nothing was written to for MAX_AGE."""
    for folder in parent.glob("*/"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > MAX_AGE:
                shutil.rmtree(folder, ignore_errors=True)
