"""One stage on several processes, started by torch's elastic launcher, as `accelerate launch` does, and joined by accelerate.

A stage calls `launch` first. In the process that the user started it starts the others, each a copy of the same command, and
waits; in the others it lets the stage go on. Under `accelerate launch` or `torchrun` the processes exist already and nothing is
started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pathsynth.core.errors import ProcessError
from pathsynth.core.io import atomic_write
from pathsynth.core.scratch import temporary_folder

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

Work = TypeVar("Work")
Result = TypeVar("Result")

# Set in processes that `launch` starts to the one that started them: it hears of their errors and tells the user once.
STARTED = "PATHSYNTH_STARTED"
# The folder that they share.
FOLDER = "PATHSYNTH_FOLDER"
LOST = "lost touch with another process"


@dataclass(frozen=True)
class Processes:
    """The processes that share a stage's work, as one of them sees it."""

    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, in the order of the processes; waits for all."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def share(self, jobs: Sequence[Work], work: Callable[[Work], Result]) -> Iterator[tuple[Work, Result]]:
        """Does every job once, the processes taking turns; all get all results, in the order of the jobs."""
        for start in range(0, len(jobs), self.count):
            turn = jobs[start : start + self.count]
            mine = work(turn[self.index]) if self.index < len(turn) else None
            yield from zip(turn, self.gather(mine), strict=False)


ALONE = Processes()


@contextmanager
def init_distributed() -> Iterator[Processes]:
    """The processes that were started with this one, there may be none; waits in the end until all have done their part."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    yield Processes(state.process_index, state.num_processes)
    state.wait_for_everyone()
    state.destroy_process_group()


@contextmanager
def shared_folder(parent: Path, processes: Processes) -> Iterator[Path]:
    """A folder for all processes, gone in the end; under `parent`, or where `launch` has made one.

    Raises:
        DataError: it cannot be made.
    """
    with ExitStack() as stack:
        folder = os.environ.get(FOLDER)
        if not folder and processes.main:
            folder = str(stack.enter_context(temporary_folder(parent)))
        yield Path(processes.gather(folder)[0])


def launch(count: int, scratch: Path | None = None) -> bool:
    """Runs the command that this process was started with on `count` processes of this machine, and waits for them.

    Args:
        count: number of processes.
        scratch: where the folder for what they share is made, which is removed however they end; None where they need none.

    Returns:
        False where there is nothing to start, so that the caller does the work.

    Raises:
        ProcessError: there are too few GPUs, or a process has failed; the others are ended too.
        DataError: the folder cannot be made.
    """
    if STARTED in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[STARTED]),), daemon=True).start()
    if count == 1 or "RANK" in os.environ:
        return False
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else None
    if gpus is not None and count > gpus:
        raise ProcessError(f"params: processes: {count}, but this machine has {gpus} GPUs; allowed: 1 to {gpus}")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    os.environ[STARTED] = str(os.getpid())
    with ExitStack() as stack:
        if scratch:
            os.environ[FOLDER] = str(stack.enter_context(temporary_folder(scratch)))
        _launch(count, stack.enter_context(tempfile.TemporaryDirectory(prefix="pathsynth-")))
    return True


def _launch(count: int, logs: str) -> None:
    import logging

    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"pathsynth-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        raise ProcessError(first_fault(error.failures, count)) from error
    except SignalException as error:
        raise ProcessError(f"ended by {signal.Signals(error.sigval).name}, and so were its {count} processes") from error


def _end_with(starter: int) -> None:
    """Ends this process when the one that started it is gone, killed by force: nobody would look at what it makes."""
    while os.getppid() == starter:
        time.sleep(1)
    os._exit(1)


def report_to_starter(message: str) -> bool:
    """Hands an error to the process that started this one, in the form of torch's launcher; False if the user started it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if STARTED not in os.environ or not path:
        return False
    # whole or not at all: the launcher cannot read half a message, and may end this process at any time
    with atomic_write(path) as part:
        part.write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
    return True


def is_lost_touch(error: BaseException) -> bool:
    """Whether an error comes from the talk between processes, mostly since another one is gone, which then is told of."""
    import torch

    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))


def first_fault(failures: Mapping[int, ProcessFailure], count: int) -> str:
    """What is to be told of several faults: who said why, else who was killed, else who lost touch, else who just ended.

    A process that has no more to say than that it lost another, or that the launcher has ended, is not where it began.
    """
    reported = {rank: str(fault.message) for rank, fault in failures.items() if os.path.isfile(fault.error_file)}
    for message in reported.values():
        if not message.startswith(LOST):
            return message
    for rank, fault in failures.items():
        if fault.exitcode < 0 and -fault.exitcode != signal.SIGTERM:
            name = signal.Signals(-fault.exitcode).name
            hint = "; the system does this when memory runs out" if name == "SIGKILL" else ""
            return f"process {rank} of {count} was killed by {name}{hint}; the others were ended"
    if reported:
        return next(iter(reported.values()))
    rank, fault = next(iter(failures.items()))
    return f"process {rank} of {count} ended with exit code {fault.exitcode}; its messages stand above"
