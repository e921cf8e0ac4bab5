"""Steps of a training: their random numbers, and their states in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.progress import progress_bar

if TYPE_CHECKING:
    import torch


class Stateful(Protocol):
    """A model, an optimizer, or anything else whose state a step changes."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restores it."""


def step_generator(seed: int, name: str, step: int) -> torch.Generator:
    """The random numbers of one step."""
    import torch

    words = np.random.SeedSequence([seed, *name.encode(), step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def run_steps(
    name: str,
    count: int,
    step: Callable[[int], Mapping[str, float]],
    trained: Mapping[str, Stateful],
    others: Mapping[str, Stateful],
    finish: Callable[[], None],
    checkpoint: Checkpoint,
) -> None:
    """Runs the steps of a part of the training that are not done yet.

    Args:
        name: name of the part, under which its state is saved.
        count: number of steps.
        step: runs the step of a number from 0; returns values for the progress bar.
        trained: the models.
        others: what else a step changes, such as the optimizer; dropped at the end.
        finish: called after the last step, before the models are saved for good.
        checkpoint: where states are saved.
    """
    state = checkpoint.load(name) or {"step": 0}
    for key, part in {**trained, **others}.items():
        if key in state:
            part.load_state_dict(state[key])
    if state["step"]:
        checkpoint.log(f"{name}: resuming after step {state['step']} of {count}")
    steps = progress_bar(range(state["step"], count), f"training {name}", count, done=state["step"])
    for index in steps:
        steps.set_postfix({key: f"{value:.4f}" for key, value in step(index).items()})
        if checkpoint.should_save() and index + 1 < count:
            parts = {**trained, **others}
            checkpoint.save(name, {"step": index + 1} | {key: part.state_dict() for key, part in parts.items()})
    if state["step"] < count:
        finish()
        checkpoint.save(name, {"step": count} | {key: part.state_dict() for key, part in trained.items()})
