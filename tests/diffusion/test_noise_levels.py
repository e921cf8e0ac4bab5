"""Time steps that are normal in log SNR."""

from __future__ import annotations

import pytest
import torch

from pathsynth.bundled_base.models import build_scheduler
from pathsynth.diffusion.noise_levels import draw_timesteps
from pathsynth.diffusion.settings import LogSnr


def test_log_snr_is_normal_in_every_batch():
    scheduler, random = build_scheduler(), torch.Generator().manual_seed(0)

    def draw(count, mean, deviation):
        return draw_timesteps(scheduler, LogSnr(mean=mean, deviation=deviation), count, random)

    signal = scheduler.alphas_cumprod[draw(4096, 0.5, 1.5)]
    log_snr = (signal / (1 - signal)).log()
    assert log_snr.mean().item() == pytest.approx(0.5, abs=0.03) and log_snr.std().item() == pytest.approx(1.5, abs=0.03)
    # two from each half, apart from rounding to time steps
    signal = scheduler.alphas_cumprod[torch.stack([draw(4, 0.0, 1.5) for _ in range(50)])]
    assert signal[:, :2].max() < 0.505 and signal[:, 2:].min() > 0.495
    assert [set(draw(4, mean, 1.0).tolist()) for mean in (50.0, -50.0)] == [{0}, {999}]
