"""Imports of all stages, made once: a process that is forked from one that has them starts with its work."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import accelerate
import diffusers
import dvclive  # noqa: F401
import matplotlib.figure  # noqa: F401
import pandas  # noqa: F401
import peft  # noqa: F401
import scipy.linalg  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch._dynamo  # noqa: F401
import torchvision.models  # noqa: F401
import transformers

# these packages import their parts on access
LAZY = (
    accelerate.Accelerator,
    diffusers.StableDiffusionPipeline,
    diffusers.DPMSolverMultistepScheduler,
    transformers.CLIPTextModel,
    transformers.CLIPTokenizer,
)
for _path in (Path(__file__).parent.parent / "stages").glob("*.py"):
    importlib.import_module(f"stages.{_path.stem}")


def run(module: str, args: list[str], environment: dict[str, str], messages: str) -> None:
    """Runs a command as `python -m` would, with its output in a file."""
    os.environ.update(environment)
    file = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = [module, *args]
    importlib.import_module(module).main(args)
