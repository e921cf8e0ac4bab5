"""What every command shares: mistakes of the user end in one line on stderr, the quiet of the libraries."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from pathsynth.core.distributed import LOST, is_lost_touch, report_to_starter
from pathsynth.core.errors import PathsynthError, one_line
from pathsynth.core.progress import close_bars

# Read by huggingface_hub, diffusers and DVCLive when they are imported: nothing is reported to anyone.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "ITERATIVE_DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


def reports_errors(command: Callable) -> Callable:
    """Ends a click command on a PathsynthError with its one line on stderr and exit code 1.

    SIGTERM ends it in order too, with 143, and Ctrl-C with 130; where a stage has started several processes, with 1, as any end
    of theirs.
    """

    @functools.wraps(command)
    def run(*args, **kwargs):
        _quiet_libraries()
        heard: list[signal.Signals] = []
        try:
            with _heard_signals(heard):
                return command(*args, **kwargs)
        except (PathsynthError, RuntimeError, Terminated, KeyboardInterrupt) as error:
            if heard:
                # also where a library took it for a fault of its own, such as a file that it could not read
                _end(f"ended by {heard[0].name}", 128 + heard[0])
            if isinstance(error, PathsynthError):
                _end(str(error))
            if isinstance(error, RuntimeError) and is_lost_touch(error):
                _end(f"{LOST}: {one_line(error)}")
            raise

    return run


@contextmanager
def _heard_signals(heard: list[signal.Signals]) -> Iterator[None]:
    """Lets SIGTERM, which would end the process at once, unwind it as Ctrl-C does, so that what is temporary goes.

    One of several processes waits for others in calls that no signal interrupts; it is ended with its starter.

    Args:
        heard: takes up what came.
    """
    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(number: int, _: object) -> NoReturn:
        heard.append(signal.Signals(number))
        # a second one, such as to the group after the process, does not break off what tidies up
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    # one that is ignored, as in the background of a shell, stays so
    taken = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, unwind) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Terminated(BaseException):
    """SIGTERM, on its way out; as KeyboardInterrupt no error, so that nothing takes it for one and goes on."""


def _end(message: str, code: int = 1) -> NoReturn:
    close_bars()
    if not report_to_starter(message):
        click.echo(f"error: {message}", err=True)
    if "RANK" in os.environ:
        # one of several processes: to take leave of others that may be gone, as sys.exit would, can hang
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _quiet_libraries() -> None:
    """Keeps hints meant for developers of the libraries off the user's terminal."""
    for name in ("diffusers", "transformers", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", message="No LoRA keys associated to CLIPTextModel")
