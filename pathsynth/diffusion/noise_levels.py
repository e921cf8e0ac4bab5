"""Random time steps for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathsynth.diffusion.settings import LogSnr

if TYPE_CHECKING:
    import torch
    from diffusers import DDIMScheduler, DDPMScheduler


def draw_timesteps(
    scheduler: DDIMScheduler | DDPMScheduler, log_snr: LogSnr, count: int, random: torch.Generator
) -> torch.Tensor:
    """Draws time steps whose log SNR is normally distributed.

    Karras et al. 2022 (table 1) draw ln sigma from -1.2 ± 1.2, which is a log SNR of 1.0 ± 2.4 for data with their standard
    deviation of 0.5. Values between two time steps are rounded to the noisier one, those outside of the schedule to its ends.

    Args:
        scheduler: the noise schedule.
        log_snr: the distribution.
        count: number of time steps.
        random: CPU generator.

    Returns:
        int64 (count,), descending: one from each of `count` equally likely ranges, so that every batch covers all noise levels.
    """
    import torch

    # on the CPU like `random`; `add_noise` may have moved it to the GPU
    signal = scheduler.alphas_cumprod.cpu()
    schedule = (1 / signal - 1).log()
    quantiles = (torch.arange(count) + torch.rand(count, generator=random)) / count
    log_nsr = -(log_snr.mean + log_snr.deviation * torch.special.ndtri(quantiles))
    return torch.searchsorted(schedule, log_nsr).clamp(max=len(schedule) - 1)
