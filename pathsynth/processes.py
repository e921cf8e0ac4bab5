"""One stage on several processes, started by torch's elastic launcher, as `accelerate launch` does, and joined by accelerate.

A stage calls `run_on` first. In the process that the user started it starts the others, each a copy of the same command, and
waits; in the others it lets the stage go on. Under `accelerate launch` or `torchrun` the processes exist already and nothing is
started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pathsynth.errors import ProcessError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

Work = TypeVar("Work")
Result = TypeVar("Result")

# Set in processes that `run_on` starts: their errors go to the one that started them, which tells the user once.
STARTED = "PATHSYNTH_STARTED"
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


def join() -> Processes:
    """Joins the processes that were started with this one; there may be none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


def run_on(count: int) -> bool:
    """Runs the command that this process was started with on `count` processes of this machine, and waits for them.

    Returns:
        False where there is nothing to start, so that the caller does the work.

    Raises:
        ProcessError: there are too few GPUs, or a process has failed; the others are ended too.
    """
    if count == 1 or "RANK" in os.environ:
        return False
    import logging

    import torch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else None
    if gpus is not None and count > gpus:
        raise ProcessError(f"params: processes: {count}, but this machine has {gpus} GPUs; allowed: 1 to {gpus}")
    os.environ[STARTED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"pathsynth-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        raise ProcessError(_first_fault(error.failures, count)) from error
    return True


def report_to_starter(message: str) -> bool:
    """Hands an error to the process that started this one, in the form of torch's launcher; False if the user started it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if STARTED not in os.environ or not path:
        return False
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"message": message, "timestamp": int(time.time())}, file)
    return True


def is_lost_touch(error: BaseException) -> bool:
    """Whether an error only says that another process is gone, which will be told of that one."""
    import torch

    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))


def _first_fault(failures: dict[int, ProcessFailure], count: int) -> str:
    """What is to be told of several faults: who was killed, else who said why, else who just ended."""
    killed = {rank: fault for rank, fault in failures.items() if fault.exitcode < 0 and -fault.exitcode != signal.SIGTERM}
    told = {rank: fault for rank, fault in failures.items() if isinstance(fault.message, str) and fault.message != LOST}
    rank, fault = next(iter((killed or told or failures).items()))
    if fault.exitcode < 0:
        name = signal.Signals(-fault.exitcode).name
        hint = "; the system does this when memory runs out" if name == "SIGKILL" else ""
        return f"process {rank} of {count} was killed by {name}{hint}; the others were ended and nothing was written"
    if os.path.isfile(fault.error_file):
        return str(fault.message)
    return f"process {rank} of {count} ended with exit code {fault.exitcode}; its messages stand above"
