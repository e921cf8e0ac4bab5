"""The denoising loss that a LoRA is trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathsynth.core.errors import ModelError
from pathsynth.finetuning.batches import StepBatch
from pathsynth.finetuning.latents import Latents
from pathsynth.finetuning.snr import min_snr_weights

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline


class Objective:
    """The denoising loss of Ho et al. 2020 on latents, for epsilon- and v-prediction bases, with its variations.

    Args:
        pipeline: has the noise schedule and the latents' scale.
        unet: what predicts, as accelerate has wrapped it.
        embeddings: float (prompts + 1, tokens, width), one row per label; the empty prompt's comes last.
        snr_gamma: of min-SNR weights, or None.

    Raises:
        ModelError: the base predicts something else.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, unet: torch.nn.Module, embeddings: torch.Tensor, snr_gamma: float | None
    ):
        from diffusers import DDPMScheduler

        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.unet, self.embeddings, self.snr_gamma = unet, embeddings, snr_gamma
        self.scaling_factor = pipeline.vae.config.scaling_factor
        self.device = pipeline.unet.device
        predicts = self.noise_scheduler.config.prediction_type
        if predicts not in ("epsilon", "v_prediction"):
            raise ModelError("scheduler", f"prediction_type {predicts!r} is not epsilon or v_prediction")

    def loss(self, latents: Latents, draw: StepBatch) -> torch.Tensor:
        """The mean loss over the images of a draw."""
        import torch

        clean = latents.draw(draw.views, draw.chosen, draw.posterior) * self.scaling_factor
        clean = clean.to(self.device, memory_format=torch.channels_last)
        noise, timesteps = draw.noise.to(self.device), draw.timesteps.to(self.device)
        texts = torch.where(draw.dropped, len(self.embeddings) - 1, latents.labels[draw.chosen])
        hidden = self.embeddings[texts].to(self.device)
        noisy = self.noise_scheduler.add_noise(clean, noise, timesteps)
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=hidden).sample
        velocity = self.noise_scheduler.config.prediction_type == "v_prediction"
        target = self.noise_scheduler.get_velocity(clean, noise, timesteps) if velocity else noise
        losses = (predicted.float() - target).square().mean(dim=(1, 2, 3))
        return (losses * self._weights(timesteps, velocity)).mean()

    def _weights(self, timesteps: torch.Tensor, velocity: bool) -> torch.Tensor:
        """Min-SNR weights, or ones."""
        if self.snr_gamma is None:
            return timesteps.new_ones(len(timesteps)).float()
        return min_snr_weights(self.noise_scheduler, timesteps, self.snr_gamma, velocity)
