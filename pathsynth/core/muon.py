"""Muon for matrices and convolutions."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Muon(torch.optim.Muon):
    """Muon (Jordan et al. 2024). Updates have an RMS of 0.2 times the learning rate, as is typical of AdamW (Liu et al. 2025).

    torch's Muon takes matrices only. Here a convolution counts as a matrix with a row for each output channel. The state is in
    that order whatever the memory format of the weights, so it can be restored on a machine with another one.

    Args:
        weights: (outputs, ...) each, with two dimensions or more; updated in place.
        learning_rate, weight_decay: at least 0.

    Raises:
        ValueError: a weight has fewer dimensions.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float):
        self._weights = list(weights)
        if few := [tuple(weight.shape) for weight in self._weights if weight.ndim < 2]:
            raise ValueError(f"Muon needs weights of two dimensions or more, not of shape {few[0]}")
        self._matrices = [torch.nn.Parameter(weight.detach().flatten(1)) for weight in self._weights]
        super().__init__(self._matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the gradients are needed before one would be called
        """Updates the weights by their gradients; those without a gradient stay as they are."""
        for weight, matrix in zip(self._weights, self._matrices, strict=True):
            # a view, or a copy in channels_last
            matrix.data = weight.detach().flatten(1)
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        super().step()
        for weight, matrix in zip(self._weights, self._matrices, strict=True):
            if matrix.data_ptr() != weight.data_ptr():
                weight.copy_(matrix.view_as(weight))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of the weights."""
        for part in (*self._weights, *self._matrices):
            part.grad = None
