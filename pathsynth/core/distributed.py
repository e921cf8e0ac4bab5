"""Several processes for one stage, started by torch's elastic launcher and connected by accelerate.

A stage calls `launch`, which runs the same command again in every process and waits for them, then `init_distributed`. Under
`accelerate launch` or `torchrun` the processes already exist and `launch` starts none.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from pathsynth.core.errors import PathsynthError, ProcessError, one_line
from pathsynth.core.gpu import explain_gpu_error, gpu_available
from pathsynth.core.io import os_error_reason, write_json
from pathsynth.core.scratch import temporary_folder

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

Job = TypeVar("Job")
Result = TypeVar("Result")

# Environment of the processes that `launch` starts: the process that started them.
LAUNCHER_PID = "PATHSYNTH_LAUNCHER_PID"
# Seconds that a process waits after losing its connection, so that the launcher sees first which process failed.
PATIENCE = 10
# What torchrun and `accelerate launch` set for each of their processes.
WORLD = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What MPI sets; accelerate would take it for a world.
MPI = tuple(
    f"{kind}_{name}" for kind in ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD") for name in ("SIZE", "RANK", "LOCAL_RANK")
)
WORLD_REMEDY = "start several processes with `processes`, torchrun or accelerate launch, or unset WORLD_SIZE"
# Seconds after which a process says that it waits for others.
WAITING = 30
# How long a process waits for the others. The main process alone hashes inputs, resumes and writes, which for a data set of
# 16 GB on a network file system may exceed the defaults: 10 minutes with NCCL and 30 with gloo.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """The processes that share a stage's work.

    Attributes:
        index: rank of this process.
        count: number of processes.
    """

    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the main process, which writes all files."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes by rank, after waiting for them."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def share(self, jobs: Sequence[Job], work: Callable[[Job], Result]) -> Iterator[tuple[Job, Result]]:
        """Distributes jobs to the processes in turn; yields all results in every process, in the order of the jobs."""
        for start in range(0, len(jobs), self.count):
            dealt = jobs[start : start + self.count]
            own = work(dealt[self.index]) if self.index < len(dealt) else None
            yield from zip(dealt, self.gather(own), strict=False)


ALONE = Processes()


def clean_distributed_environment() -> None:
    """Removes the variables of a distributed launch, which clusters and notebooks set, unless they name several processes.

    torch and accelerate read them, each in its own way, and would wait for processes that do not exist.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return
    removed = {name: os.environ.pop(name) for name in (*WORLD, *MPI) if name in os.environ}
    ranks = [f"{name}={removed[name]}" for name in ("RANK", "LOCAL_RANK") if name in removed]
    if ranks and "WORLD_SIZE" not in removed:
        click.echo(f"ignoring {' and '.join(ranks)}, because WORLD_SIZE is not set", err=True)
    sizes = [f"{name}={removed[name]}" for name in MPI if name.endswith("_SIZE") and removed.get(name, "1") != "1"]
    if sizes:
        click.echo(f"ignoring {sizes[0]}: MPI starts independent copies of a stage; use `processes` instead", err=True)


def check_world() -> None:
    """Checks the variables of several processes that torchrun or `accelerate launch` has started.

    Raises:
        ProcessError: they are incomplete or contradict each other, or the host of the main process is unknown.
    """
    world = {name: os.environ[name] for name in WORLD if name in os.environ}
    size = _read_count(world, "WORLD_SIZE", 1)
    if missing := [name for name in WORLD if name not in world]:
        raise ProcessError(f"environment: WORLD_SIZE={size} without {', '.join(missing)}; {WORLD_REMEDY}")
    if not _read_count(world, "RANK", 0) < size:
        raise ProcessError(f"environment: RANK={world['RANK']}, but WORLD_SIZE={size}; {WORLD_REMEDY}")
    _read_count(world, "LOCAL_RANK", 0)
    _resolve_host(world["MASTER_ADDR"])


def _resolve_host(name: str) -> None:
    """Raises ProcessError for an unknown host, which torch would look up again and again for half an hour."""
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ProcessError(f"environment: MASTER_ADDR={name}: {os_error_reason(error)}") from error


def _read_count(world: Mapping[str, str], name: str, least: int) -> int:
    text = world.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise ProcessError(f"environment: {name}={text}: must be an integer >= {least}")
    return int(text)


@contextmanager
def init_distributed() -> Iterator[Processes]:
    """Connects the processes of this stage, and waits for all of them at the end; yields `ALONE` if there is only one.

    Raises:
        ProcessError: if the connection to another process is lost.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    import torch
    from accelerate import PartialState

    place = "{MASTER_ADDR}:{MASTER_PORT}".format_map(os.environ)
    message = f"still waiting for the other processes (WORLD_SIZE={os.environ['WORLD_SIZE']}) at {place}"
    waiting = threading.Timer(WAITING, click.echo, [message], {"err": True})
    waiting.daemon = True
    waiting.start()
    try:
        state = PartialState(cpu=not gpu_available(), timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        failed = ProcessError(f"could not connect to the other processes at {place}: {one_line(error)}")
        raise explain_gpu_error(error) or failed from error
    finally:
        waiting.cancel()
    try:
        yield Processes(state.process_index, state.num_processes)
        state.wait_for_everyone()
    except PathsynthError as error:
        _exit_worker(error)
    except RuntimeError as error:
        explained: PathsynthError | None = explain_gpu_error(error)
        # gloo raises plain RuntimeErrors
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            time.sleep(PATIENCE)
            explained = explained or ProcessError(f"lost the connection to another process: {one_line(error)}")
        if explained is None:
            raise
        _exit_worker(explained)
    state.destroy_process_group()


def _exit_worker(error: PathsynthError) -> NoReturn:
    """Reports an error to the launcher, or prints it if `launch` did not start this process, and exits at once.

    A normal exit would wait for the other processes, which may wait for this one.
    """
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if LAUNCHER_PID in os.environ and report:
        write_json(report, {"message": error.message, "timestamp": int(time.time())})
    else:
        error.show()
    sys.stderr.flush()
    os._exit(1)


def launch(num_processes: int, scratch: Path) -> bool:
    """Runs the command of this process in `num_processes` processes on this machine, and waits for them.

    Args:
        num_processes: number of processes.
        scratch: parent of a temporary folder for the launcher's files.

    Returns:
        Whether the work is done; False if this process has to do it, alone or as one of several.

    Raises:
        ProcessError: if there are too few GPUs or a process fails, which ends the others.
        DataError: if the temporary folder cannot be created.
    """
    if LAUNCHER_PID in os.environ:
        threading.Thread(target=_exit_with, args=(int(os.environ[LAUNCHER_PID]),), daemon=True).start()
    if "WORLD_SIZE" in os.environ:
        check_world()
        return False
    if num_processes == 1:
        return False
    import torch

    gpus = torch.cuda.device_count() if gpu_available() else num_processes
    if num_processes > gpus:
        raise ProcessError(f"params: processes: {num_processes}, but this machine has {gpus} GPUs; allowed: 1 to {gpus}")
    with temporary_folder(scratch) as folder:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // num_processes)))
        os.environ[LAUNCHER_PID] = str(os.getpid())
        _launch(num_processes, folder)
    return True


def _launch(num_processes: int, folder: Path) -> None:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"pathsynth-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        raise ProcessError(describe_failure(error.failures, num_processes)) from error
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        raise ProcessError(f"ended by {name}, together with its {num_processes} processes") from error


def _exit_with(launcher: int) -> None:
    """Ends this process when its launcher was killed."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


def describe_failure(failures: Mapping[int, ProcessFailure], count: int) -> str:
    """Describes why a stage failed: an error that a process reported, else the signal that killed one, else an exit code.

    Args:
        failures: failed processes by rank, including those that the launcher ended with SIGTERM.
        count: number of processes.
    """
    reports = [failure.message for failure in failures.values() if os.path.isfile(failure.error_file)]
    if reports:
        return reports[0]
    # signals are negative exit codes; SIGTERM came from the launcher after another failure
    rank = min(failures, key=lambda rank: (failures[rank].exitcode == -signal.SIGTERM, failures[rank].exitcode))
    code = failures[rank].exitcode
    if code >= 0:
        return f"process {rank} of {count} ended with exit code {code}; its messages are above"
    hint = "; the system does this when memory runs out" if code == -signal.SIGKILL else ""
    return f"process {rank} of {count} was killed by {signal.Signals(-code).name}{hint}"
