"""Weights of the denoising loss by signal-to-noise ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import SchedulerMixin


def min_snr_weights(scheduler: SchedulerMixin, timesteps: torch.Tensor, gamma: float, velocity: bool) -> torch.Tensor:
    """Min-SNR weights (Hang et al. 2023, section 3.4), float32 (n,).

    Args:
        scheduler: has the noise schedule, `alphas_cumprod`.
        timesteps: int64 (n,).
        gamma: highest signal-to-noise ratio that counts.
        velocity: whether the model predicts v; else it predicts epsilon.
    """
    from diffusers.training_utils import compute_snr

    snr = compute_snr(scheduler, timesteps)
    return snr.clamp(max=gamma) / (snr + 1 if velocity else snr)
