"""Folders for what is needed meanwhile, gone in the end; what a killed process has left is found by its lock and swept."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pathsynth.core.errors import DataError, ProcessError
from pathsynth.core.io import reason

PREFIX = "pathsynth-"
# Its name tells our folders from those of users.
LOCK = ".pathsynth-lock"
# Seconds: a lock's file is there a moment before the lock is taken.
GRACE = 60
# Seconds that a dying process may keep its lock, that of a starter whose processes have not yet seen that it is gone.
PATIENCE = 15


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder under `parent`, gone with all that is in it in the end, and with it those of killed processes.

    Raises:
        DataError: it cannot be made.
    """
    from filelock import FileLock

    with ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
            made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            stack.enter_context(FileLock(folder / LOCK))
        except OSError as error:
            raise DataError(parent, f"no folder can be made there: {reason(error)}") from error
        yield folder


def _sweep(parent: Path) -> None:
    """Removes folders whose process was killed: the system has let go of their locks."""
    from filelock import FileLock, Timeout

    for lock in parent.glob(f"{PREFIX}*/{LOCK}"):
        # another process may be sweeping too, and a folder of another user stays
        with suppress(OSError, Timeout):
            if time.time() - lock.stat().st_mtime > GRACE:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path, patience: float | None = None) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made where it is missing; the system ends this with the process.

    Args:
        folder: its lock is the file FOLDER.lock, which goes when the folder is gone in the end.
        patience: most seconds to wait for another process, by default PATIENCE.

    Raises:
        ProcessError: another process holds it.
        DataError: it cannot be made.
    """
    from filelock import FileLock, Timeout

    # beside the folder, so that whoever waits for it does not hold the lock of a folder that was removed
    lock_file = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(lock_file, timeout=PATIENCE if patience is None else patience)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        # not before: whoever held it may have taken the folder away
        folder.mkdir(exist_ok=True)
    except Timeout as error:
        raise ProcessError(f"{folder}: another run of the same stage is at work there; wait for it, or end it") from error
    except OSError as error:
        raise DataError(folder, f"cannot be used: {reason(error)}") from error
    try:
        yield
    finally:
        if not folder.exists():
            # whoever waits for it sees that and locks a new one
            lock_file.unlink(missing_ok=True)
        lock.release()
