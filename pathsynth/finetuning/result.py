"""The result of a training, of all its steps or of the first ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.finetuning.settings import LoraSettings

if TYPE_CHECKING:
    import torch

Result = dict[str, float | int]


def summarize_steps(settings: LoraSettings, parameters: Sequence[torch.nn.Parameter], losses: Sequence[float]) -> Result:
    """Summarizes a training by the losses of its steps.

    Args:
        settings: the LoRA configuration.
        parameters: the trainable parameters.
        losses: of all optimizer steps, at least one.

    Returns:
        `trainable_parameters`, `images_seen` and `loss`, the mean over the last tenth of the steps.
    """
    return {
        "trainable_parameters": sum(parameter.numel() for parameter in parameters),
        "images_seen": len(losses) * settings.training.effective_batch_size,
        "loss": round(float(np.mean(losses[-max(1, len(losses) // 10) :])), 6),
    }
