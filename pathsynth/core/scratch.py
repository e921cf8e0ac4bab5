"""Temporary directories."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathsynth.core.errors import DataError
from pathsynth.core.io import os_error_reason

# Where DVC runs the experiments of `--temp` and `--queue`, within its repository.
EXPERIMENTS = (".dvc", "tmp", "exps")


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
