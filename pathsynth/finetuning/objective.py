"""The denoising loss of a LoRA training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathsynth.diffusion.denoising import load_noise_scheduler, squared_errors
from pathsynth.finetuning.batches import StepBatch
from pathsynth.finetuning.latents import Latents

if TYPE_CHECKING:
    import torch
    from diffusers import SchedulerMixin, StableDiffusionPipeline


class Objective:
    """The denoising loss of Ho et al. 2020 on latents, for epsilon- and v-prediction bases.

    Args:
        pipeline: provides the noise schedule and the scale of latents.
        unet: the UNet as accelerate has wrapped it.
        embeddings: float (prompts + 1, tokens, width), one row per label and the empty prompt last.
        snr_gamma: gamma of min-SNR weights, or None for equal weights.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, unet: torch.nn.Module, embeddings: torch.Tensor, snr_gamma: float | None
    ):
        self.noise_scheduler = load_noise_scheduler(pipeline)
        self.unet, self.embeddings, self.snr_gamma = unet, embeddings, snr_gamma
        self.scaling_factor = pipeline.vae.config.scaling_factor
        self.device = pipeline.unet.device
        self.velocity = self.noise_scheduler.config.prediction_type == "v_prediction"

    def loss(self, latents: Latents, batch: StepBatch) -> torch.Tensor:
        """The mean loss of a batch."""
        import torch

        clean = latents.sample(batch.views, batch.images, batch.posterior_noise) * self.scaling_factor
        clean = clean.to(self.device)
        noise, timesteps = batch.noise.to(self.device), batch.timesteps.to(self.device)
        texts = torch.where(batch.dropped, len(self.embeddings) - 1, latents.labels[batch.images])
        hidden = self.embeddings[texts].to(self.device)
        losses = squared_errors(self.unet, self.noise_scheduler, clean, noise, timesteps, hidden)
        if self.snr_gamma is not None:
            losses = losses * min_snr_weights(self.noise_scheduler, timesteps, self.snr_gamma, self.velocity)
        return losses.mean()


def min_snr_weights(scheduler: SchedulerMixin, timesteps: torch.Tensor, gamma: float, velocity: bool) -> torch.Tensor:
    """Min-SNR weights (Hang et al. 2023, section 3.4), float32 (n,).

    Args:
        scheduler: provides the noise schedule, `alphas_cumprod`.
        timesteps: int64 (n,).
        gamma: upper bound of the signal-to-noise ratio.
        velocity: whether the model predicts v instead of epsilon.
    """
    from diffusers.training_utils import compute_snr

    snr = compute_snr(scheduler, timesteps)
    # min(snr, gamma) / snr, written so that it is 1 at a ratio of 0
    return snr.clamp(max=gamma) / (snr + 1) if velocity else (gamma / snr).clamp(max=1)
