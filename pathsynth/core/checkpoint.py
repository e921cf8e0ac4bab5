"""Work that outlives its process: a stage that was killed is started again and goes on, and ends with the same outs.

A state is found by all that the result depends on: parameters, processes, machine, versions, code and inputs. A run in which
any of these is another one starts anew, and never picks up what is stale.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import click

from pathsynth.core.distributed import ALONE, Processes
from pathsynth.core.environment import processor, versions
from pathsynth.core.errors import DataError, ProcessError
from pathsynth.core.io import atomic_write, read_json, reason, sha256_of, write_json
from pathsynth.core.params import Section
from pathsynth.core.scratch import lock_folder

# Seconds between two states; what is lost is their work and that of one step, epoch or batch.
SECONDS = 30.0
SECONDS_VARIABLE = "PATHSYNTH_SAVE_SECONDS"
# After so many days nobody is going to go on.
DAYS_KEPT = 7
DIGEST = 32
TIMES = "times.json"


class Saved:
    """What a stage has saved of its work, by name.

    Attributes:
        folder: where it is kept, the same for all processes; None keeps nothing.
        writes: whether this process keeps what is put, the first of several.
        seconds: that earlier runs have worked.
    """

    def __init__(self, folder: Path | None = None, *, writes: bool = True):
        self.folder, self.writes = folder, writes and folder is not None
        self._every = _seconds_between() if self.writes else SECONDS
        self._started = self._last = time.monotonic()
        self.seconds = self._earlier_seconds()

    def get(self, name: str) -> dict[str, Any] | None:
        """The state of that name; None where there is none, or only a part of it.

        Raises:
            DataError: it is there and cannot be read.
        """
        if self.folder is None or not (self.folder / name).is_file():
            return None
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise DataError(self.folder / name, f"could not be read: {reason(error)}") from error
        try:
            return unpacked(content)
        except MemoryError:
            raise
        except Exception:
            # a damaged pickle makes the loader stumble in any way
            self.log(f"what was saved as {name} is damaged; that part begins anew")
            return None

    def put(self, name: str, state: dict[str, Any]) -> None:
        """Saves tensors, numbers, texts, lists and dicts of such, in place of an earlier state of that name.

        Raises:
            DataError: it cannot be written; the earlier state is as it was.
        """
        if not self.writes or self.folder is None:
            return
        import torch

        content = BytesIO()
        torch.save(state, content)
        with atomic_write(self.folder / name) as part, open(part, "wb") as file:
            file.write(hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())
        self.keep_time()

    def should_save(self) -> bool:
        """Whether it is time to save; never so in processes that do not write."""
        return self.writes and time.monotonic() - self._last >= self._every

    def cached(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` gives, or what it gave in an earlier run."""
        found = self.get(name)
        if found is not None:
            self.log(f"{name} was done by an earlier run")
            return found
        found = make()
        self.put(name, found)
        return found

    def keep_time(self) -> None:
        """Notes how long this and earlier runs have worked."""
        if self.writes and self.folder is not None:
            self._last = time.monotonic()
            write_json(self.folder / TIMES, {"seconds": self.seconds + self._last - self._started})

    def log(self, message: str) -> None:
        """Says how the run goes on, once for all processes."""
        if self.writes:
            click.echo(message, err=True)

    def _earlier_seconds(self) -> float:
        if self.folder is None or not (self.folder / TIMES).is_file():
            return 0.0
        try:
            return float(read_json(self.folder / TIMES)["seconds"])
        except (DataError, KeyError, TypeError, ValueError):
            # the time is for a log alone
            return 0.0


NOTHING = Saved()


@contextmanager
def resumable(
    scratch: Path, stage: str, settings: Mapping[str, Any], inputs: Sequence[Path], processes: Processes = ALONE
) -> Iterator[Saved]:
    """Keeps what the block saves until it has ended well; after any other end it is there for the next run.

    Args:
        scratch: folder for what is needed meanwhile; states are in its folder `resume`.
        stage: name of the stage.
        settings: what the result depends on: sections and plain values.
        inputs: files and folders that the stage reads.
        processes: who shares the work; the first one saves.

    Yields:
        What an earlier run has saved, or nothing.

    Raises:
        ProcessError: another run of the same stage is at work.
        DataError: the folder cannot be written.
    """
    folder = None
    with ExitStack() as stack:
        if processes.main:
            folder = scratch / "resume" / f"{stage}-{_key(stage, settings, inputs, processes)}"
            stack.enter_context(lock_folder(folder))
            _sweep(folder)
        # nobody looks before the first one holds the folder, and all look there, whatever their own GPU is called
        folder = processes.gather(folder)[0]
        yield Saved(folder, writes=processes.main)
        if processes.main:
            shutil.rmtree(folder, ignore_errors=True)


def unpacked(content: bytes) -> dict[str, Any]:
    """A state from its file, by torch's restricted loader, which builds tensors and runs nothing.

    Raises:
        ValueError: it is not whole. For what was made to harm, whatever torch raises.
    """
    import torch

    if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        raise ValueError("another checksum")
    return torch.load(BytesIO(content[DIGEST:]), map_location="cpu", weights_only=True)


def _key(stage: str, settings: Mapping[str, Any], inputs: Sequence[Path], processes: Processes) -> str:
    content = {
        "stage": stage,
        "settings": {key: _plain(value) for key, value in settings.items()},
        "processes": processes.count,
        "machine": _machine(),
        "versions": versions(),
        "code": [sha256_of(path) for path in sorted(_code())],
        "inputs": [_stamps(path) for path in inputs],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A section as a dict; any other value unchanged."""
    return value.model_dump() if isinstance(value, Section) else value


def _code() -> Iterator[Path]:
    package = Path(__file__).parent.parent
    yield from package.rglob("*.py")
    yield from (package.parent / "stages").glob("*.py")


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a file, or of all files in a folder, which is read in no time however large they are."""
    # links into a cache are followed, which rglob does not do
    walked = os.walk(path, followlinks=True)
    found = [path] if path.is_file() else sorted(Path(folder, name) for folder, _, names in walked for name in names)
    try:
        return [(part.relative_to(path).as_posix(), part.stat().st_size, part.stat().st_mtime_ns) for part in found]
    except OSError as error:
        raise DataError(path, f"could not be read: {reason(error)}") from error


def _seconds_between() -> float:
    text = os.environ.get(SECONDS_VARIABLE, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise ProcessError(f"{SECONDS_VARIABLE}: {text!r}: must be a number of seconds from 0")
    return seconds


def _machine() -> list[object]:
    """What decides how numbers are rounded."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return [platform.machine(), processor(), torch.get_num_threads(), gpu]


def _sweep(own: Path) -> None:
    """Removes states that nobody has gone on with for some days."""
    for folder in own.parent.glob("*/"):
        if folder == own or time.time() - _newest(folder) < DAYS_KEPT * 86_400:
            continue
        with suppress(ProcessError, DataError), lock_folder(folder, patience=0):
            shutil.rmtree(folder, ignore_errors=True)


def _newest(folder: Path) -> float:
    with suppress(OSError):
        return max((path.stat().st_mtime for path in (folder, *folder.iterdir())), default=0.0)
    return time.time()
