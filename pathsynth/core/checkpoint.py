"""Checkpointing: interrupted stages resume where they stopped, and end with the same outputs.

A checkpoint is keyed by everything that the result depends on: settings, inputs, versions, code, machine and number of
processes. If any of them changes, the stage starts over.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathsynth.core.distributed import ALONE, Processes
from pathsynth.core.environment import describe_hardware, package_versions
from pathsynth.core.errors import DataError, ProcessError
from pathsynth.core.io import atomic_write, compute_sha256, os_error_reason, read_bytes, read_json, write_json
from pathsynth.core.params import Params, Section
from pathsynth.core.progress import progress_bar
from pathsynth.core.scratch import remove_abandoned

if TYPE_CHECKING:
    from filelock import BaseFileLock

# Minimum seconds between two checkpoints, and the largest share of the run time that saving may take.
INTERVAL = 30.0
MAX_SHARE = 0.05
INTERVAL_VARIABLE = "PATHSYNTH_SAVE_SECONDS"
TIMES = "times.json"
LOCK = "lock"
# Bytes of inputs from which hashing them shows a progress bar.
LARGE_INPUT = 2**30


class Checkpoint:
    """Named states of a stage on disk, and the time that the stage has taken so far.

    Args:
        folder: where states are saved, the same for all processes; None saves nothing.
        writes: whether this process saves; only the main process does.

    Attributes:
        seconds: run time of earlier, interrupted runs.

    Raises:
        ProcessError: for an invalid interval in the environment.
    """

    def __init__(self, folder: Path | None = None, *, writes: bool = True):
        self.folder, self.writes = folder, writes and folder is not None
        self._interval = _read_interval() if self.writes else INTERVAL
        self._started = self._last = time.monotonic()
        self._cost = 0.0
        self.seconds = self._read_seconds()

    def load(self, name: str) -> dict[str, Any] | None:
        """Loads a saved state with torch's restricted loader; returns None if it is missing or damaged.

        Raises:
            DataError: if it cannot be read.
        """
        if self.folder is None or not (self.folder / name).is_file():
            return None
        import torch

        content = BytesIO(read_bytes(self.folder / name))
        try:
            return torch.load(content, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception:
            # the loader raises many exception types on damaged input
            self.log(f"the checkpoint {name} is damaged; starting over")
            return None

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Saves tensors, numbers, strings, lists and dicts under a name, replacing an earlier state atomically.

        Raises:
            DataError: if it cannot be written.
        """
        if not self.writes or self.folder is None:
            return
        import torch

        started = time.monotonic()
        # torch reports a full disk as a RuntimeError
        content = BytesIO()
        torch.save(state, content)
        with atomic_write(self.folder / name) as part:
            part.write_bytes(content.getbuffer())
        self.keep_time()
        self._cost = time.monotonic() - started

    def should_save(self) -> bool:
        """Returns whether this process saves, and has not done so for INTERVAL and for the time that MAX_SHARE demands."""
        wait = max(self._interval, self._cost / MAX_SHARE) if self._interval else 0.0
        return self.writes and time.monotonic() - self._last >= wait

    def cached(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the state that an earlier run has saved, or computes and saves it."""
        state = self.load(name)
        if state is not None:
            self.log(f"{name}: reusing the result of an earlier run")
            return state
        state = compute()
        self.save(name, state)
        return state

    def keep_time(self) -> None:
        """Records the total run time, including earlier runs."""
        if self.writes and self.folder is not None:
            self._last = time.monotonic()
            write_json(self.folder / TIMES, {"seconds": self.seconds + self._last - self._started})

    def log(self, message: str) -> None:
        """Prints a message on stderr, from the main process only."""
        if self.writes:
            click.echo(message, err=True)

    def _read_seconds(self) -> float:
        if self.folder is None or not (self.folder / TIMES).is_file():
            return 0.0
        # a damaged file costs only the time that is known
        with suppress(DataError, KeyError, TypeError, ValueError):
            return float(read_json(self.folder / TIMES)["seconds"])
        return 0.0


NO_CHECKPOINT = Checkpoint()


@contextmanager
def open_checkpoint(
    scratch: Path,
    stage: str,
    params: Params,
    seed: int,
    settings: Mapping[str, Any],
    inputs: Sequence[Path],
    processes: Processes = ALONE,
) -> Iterator[Checkpoint]:
    """Opens the checkpoint of a stage, and removes it when the block succeeds.

    Args:
        scratch: folder for temporary files; checkpoints are in its folder `resume`.
        stage: name of the stage.
        params: parameters, for `deterministic`.
        seed: the seed that the stage uses.
        settings: all other settings that the result depends on: sections and plain values by name.
        inputs: files and folders that the stage reads.
        processes: processes that share the work; the main process saves.

    Raises:
        DataError: if the folder cannot be created.
    """
    with (
        nullcontext()
        if not processes.main
        else _claim_folder(scratch / "resume", f"{stage}-{_compute_key(params, seed, settings, inputs, processes)}") as own
    ):
        # all use the key of the main process; on a different GPU, for example, a process would compute a different one
        yield Checkpoint(processes.gather(own)[0], writes=processes.main)


def open_shared(
    scratch: Path,
    name: str,
    params: Params,
    seed: int,
    settings: Mapping[str, Any],
    inputs: Sequence[Path],
    processes: Processes = ALONE,
) -> Checkpoint:
    """Opens results that experiments have in common, such as trainings on real images only.

    Several runs may use them at the same time. They are removed when no run has used them for a week.

    Args:
        scratch: folder for temporary files; shared results are in its folder `shared`.
        name: name of the results.
        params, seed, settings, inputs, processes: as for `open_checkpoint`.

    Raises:
        DataError: if the folder cannot be created.
    """
    folder = None
    if processes.main:
        folder = scratch / "shared" / f"{name}-{_compute_key(params, seed, settings, inputs, processes)}"
        remove_abandoned(folder.parent)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
        except OSError as error:
            raise DataError(folder, f"could not be created: {os_error_reason(error)}") from error
    # all use the key of the main process, see `open_checkpoint`
    return Checkpoint(processes.gather(folder)[0], writes=processes.main)


@contextmanager
def _claim_folder(parent: Path, name: str) -> Iterator[Path]:
    """Locks the newest free folder of a stage, and removes all free ones when the block succeeds.

    If all are in use, it is a new folder with a copy of the newest state. That happens with several workers of DVC's queue, and
    when DVC was killed but its stage was not.
    """
    remove_abandoned(parent)
    newest_first = sorted(parent.glob(f"{name}-*"), key=_last_saved, reverse=True)
    numbered = (parent / f"{name}-{number}" for number in itertools.count())
    folder, lock = next((folder, lock) for folder in itertools.chain(newest_first, numbered) if (lock := _try_lock(folder)))
    try:
        if newest_first and folder not in newest_first:
            # the other run may end meanwhile and remove its files; each that was copied is complete
            with suppress(OSError):
                shutil.copytree(newest_first[0], folder, ignore=shutil.ignore_patterns(LOCK, ".*"), dirs_exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        for other in newest_first:
            if other != folder and (free := _try_lock(other)):
                shutil.rmtree(other, ignore_errors=True)
                free.release()
    finally:
        lock.release()


def _last_saved(folder: Path) -> float:
    """Time of the last checkpoint in a folder, 0 if it has none."""
    with suppress(OSError):
        return (folder / TIMES).stat().st_mtime
    return 0.0


def _try_lock(folder: Path) -> BaseFileLock | None:
    """Creates a folder if it is missing, and locks it unless another process has."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        lock.acquire()
    except (Timeout, FileNotFoundError):
        # the folder is in use, or the process that used it has just removed it
        return None
    except OSError as error:
        # file systems without locks
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise DataError(folder, f"could not be created: {os_error_reason(error)}") from error
    return lock


def _compute_key(params: Params, seed: int, settings: Mapping[str, Any], inputs: Sequence[Path], processes: Processes) -> str:
    import torch

    content = {
        "seed": seed,
        "deterministic": params.deterministic,
        "settings": {key: value.model_dump() if isinstance(value, Section) else value for key, value in settings.items()},
        "processes": processes.count,
        "machine": [*describe_hardware(), torch.get_num_threads()],
        "versions": package_versions(),
        "code": [compute_sha256(path) for path in _list_code()],
        "inputs": [_hash_files(path) for path in inputs],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _list_code() -> list[Path]:
    package = Path(__file__).parent.parent
    return sorted([*package.rglob("*.py"), *(package.parent / "stages").glob("*.py")])


def _hash_files(path: Path) -> list[tuple[str, str]]:
    """Lists name and SHA-256 of a file, or of all files in a folder.

    Their times would not do, because every temporary copy in which DVC runs an experiment has new ones.
    """
    # rglob would not follow links into a cache
    walked = os.walk(path, followlinks=True)
    files = [path] if path.is_file() else sorted(Path(folder, name) for folder, _, names in walked for name in names)
    hidden = sum(file.stat().st_size for file in files) < LARGE_INPUT
    return [
        (file.relative_to(path).as_posix(), compute_sha256(file))
        for file in progress_bar(files, f"hashing {path.name}", hidden=hidden)
    ]


def _read_interval() -> float:
    text = os.environ.get(INTERVAL_VARIABLE, str(INTERVAL))
    try:
        return float(text)
    except ValueError as error:
        raise ProcessError(f"{INTERVAL_VARIABLE}: {text!r} is not a number of seconds") from error
