"""Shared by all commands: option types, options of several stages, silenced libraries, clean-up on SIGTERM."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

from pathsynth.core.distributed import clean_distributed_environment
from pathsynth.core.gpu import explain_gpu_error
from pathsynth.core.params import Params, load_params
from pathsynth.core.progress import close_bars
from pathsynth.core.scratch import resolve_scratch

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


def _load_params(_: click.Context, __: click.Parameter, path: Path) -> Params:
    """Reads params.yaml, and hides all GPUs from this process and its children if `device` is cpu."""
    loaded = load_params(path)
    if loaded.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return loaded


params = click.option("--params", type=FILE, required=True, callback=_load_params, help="params.yaml")
params_here = click.option("--params", type=FILE, default="params.yaml", show_default=True, callback=_load_params)
prepared = click.option("--prepared", type=FOLDER, required=True, help="Folder of the stage prepare.")
gate = click.option("--gate", type=FOLDER, required=True, help="Folder of the classifier that filters.")
judge = click.option("--judge", type=FOLDER, required=True, help="Folder of the classifier that only evaluates.")
generated = click.option("--generated", type=FOLDER, required=True, help="Folder of the stage generate_filtered.")
curves = click.option("--curves", type=FOLDER, required=True, help="Output folder for training curves.")
scratch = click.option(
    "--scratch",
    type=FOLDER,
    default="scratch",
    show_default=True,
    callback=lambda _, __, path: resolve_scratch(path),
    help="Folder for temporary files and checkpoints.",
)
logs = click.option("--logs", type=FOLDER, default="logs", show_default=True, help="Output folder for run time and memory use.")

# Telemetry and messages for developers. The libraries read these when they are imported.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "ITERATIVE_DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
for _name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
    os.environ.setdefault(_name, "error")
for _name in ("diffusers", "transformers", "accelerate", "peft"):
    logging.getLogger(_name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="No LoRA keys associated to CLIPTextModel")


def run_as_command(command: Callable) -> Callable:
    """Wraps what a click command does: it ends on SIGTERM as on an error, and ignores leftovers of distributed launches.

    SIGTERM gives one line and exit code 143, so that temporary files are removed. Errors of CUDA and its libraries give one
    line with a remedy.
    """

    @functools.wraps(command)
    def run(*args, **kwargs):
        clean_distributed_environment()
        # with several processes, one may be blocked in a call during which Python runs no signal handlers
        if "RANK" not in os.environ:
            signal.signal(signal.SIGTERM, _exit)
        try:
            return command(*args, **kwargs)
        except RuntimeError as error:
            if (explained := explain_gpu_error(error)) is None:
                raise
            raise explained from error

    return run


def _exit(number: int, _: object) -> NoReturn:
    # a second signal must not interrupt the clean-up
    signal.signal(number, signal.SIG_IGN)
    close_bars()
    click.echo("error: ended by SIGTERM", err=True)
    sys.exit(128 + number)
