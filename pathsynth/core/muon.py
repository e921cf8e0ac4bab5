"""Muon for matrices and convolutions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

from pathsynth.core.devices import computes_bf16

MOMENTUM = 0.95
# Coefficients of the polynomial, and how often it is applied (Jordan et al. 2024).
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
# RMS of the updates at a learning rate of 1, as is typical of AdamW (Liu et al. 2025).
UPDATE_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), whose updates have an RMS of 0.2 times the learning rate.

    Gives the updates of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, but takes convolutions too, as matrices with
    a row for each output channel, and orthogonalizes matrices of the same shape in one batch. A LoRA has hundreds of them.

    Args:
        weights: (outputs, ...) each, with two dimensions or more; updated in place.
        learning_rate, weight_decay: at least 0.

    Raises:
        ValueError: a weight has fewer dimensions.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float):
        weights = list(weights)
        if few := [tuple(weight.shape) for weight in weights if weight.ndim < 2]:
            raise ValueError(f"Muon needs weights of two dimensions or more, not of shape {few[0]}")
        super().__init__(weights, {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the gradients are needed before one would be called
        """Updates the weights by their gradients; those without a gradient stay as they are."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    average = self._average_gradients(weight, weight.grad.flatten(1))
                    alike[average.shape, average.device].append((weight, average))
            for (shape, _), entries in alike.items():
                weights, averages = zip(*entries, strict=True)
                rate = group["lr"] * UPDATE_RMS * max(shape) ** 0.5
                for weight, update in zip(weights, orthogonalize(torch.stack(averages)), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(weight), alpha=rate)

    def _average_gradients(self, weight: torch.nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
        """Updates the momentum and returns its Nesterov average; both flat, so that they do not depend on the memory format."""
        if "momentum" not in self.state[weight]:
            self.state[weight]["momentum"] = torch.zeros_like(gradient)
        momentum = self.state[weight]["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Replaces the singular values of matrices (n, rows, columns) by values of about 1, by a Newton-Schulz iteration.

    The iteration runs in bf16, which is enough for it, or in float32 where bf16 would be emulated.

    Returns:
        The same shape and number format; matrices of zeros stay zeros.
    """
    first, third, fifth = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if tall else matrices
    if computes_bf16(matrices.device.type):
        wide = wide.bfloat16()
    # dividing by the Frobenius norm bounds all singular values by 1, within the range of convergence
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return (wide.mT if tall else wide).to(matrices.dtype)
