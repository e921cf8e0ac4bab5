"""The optimizer of UNet and text encoder: Muon for matrices and convolutions, AdamW for the rest."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pathsynth.bundled_base.settings import Phase

if TYPE_CHECKING:
    import torch

WEIGHT_DECAY = 1e-2
# Parts of the names of parameters that AdamW updates: embeddings, and the first and last convolution of the UNet.
OUTER = ("embed", "conv_in", "conv_out")


class MuonWithAdamW:
    """Muon and AdamW with one learning-rate cycle.

    Args:
        unet, text_encoder: the models; their weights are updated in place.
        phase: learning rate, steps and warm-up.
    """

    def __init__(self, unet: torch.nn.Module, text_encoder: torch.nn.Module, phase: Phase):
        import torch

        from pathsynth.core.muon import Muon

        named = [*unet.named_parameters(), *text_encoder.named_parameters()]
        hidden = [p for name, p in named if p.ndim > 1 and not any(part in name for part in OUTER)]
        left = {id(weight) for weight in hidden}
        rest = [p for _, p in named if id(p) not in left]
        rate = phase.learning_rate
        optimizers = (
            Muon(hidden, rate, WEIGHT_DECAY),
            torch.optim.AdamW(rest, rate, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY),
        )
        warmup = phase.warmup_steps / phase.steps
        cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=rate, total_steps=phase.steps, pct_start=warmup)
        schedules = (cycle(optimizer, cycle_momentum=False) for optimizer in optimizers)
        self._parts: tuple[Any, ...] = (*optimizers, *schedules)

    def step(self) -> None:
        """Updates the weights by their gradients, and advances the learning rate."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both optimizers and schedules."""
        return {"states": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state from `state_dict`."""
        for part, saved in zip(self._parts, state["states"], strict=True):
            part.load_state_dict(saved)
