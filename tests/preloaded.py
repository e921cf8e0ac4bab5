"""What stages import, imported once: a process that is forked from one that has it begins with the work itself."""

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

# these load their parts when they are asked for
LAZY = (
    accelerate.Accelerator,
    diffusers.StableDiffusionPipeline,
    diffusers.DPMSolverMultistepScheduler,
    diffusers.training_utils.EMAModel,
    transformers.CLIPTextModel,
    transformers.CLIPTokenizer,
)
for _path in (Path(__file__).parent.parent / "stages").glob("*.py"):
    importlib.import_module(f"stages.{_path.stem}")


def run(module: str, args: list[str], environment: dict[str, str], said: str) -> None:
    """Runs a command as `python -m` would, with what it says in a file."""
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = [module, *args]
    importlib.import_module(module).main(args)
