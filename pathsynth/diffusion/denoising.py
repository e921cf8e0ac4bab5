"""Denoising losses: the squared error of the UNet for noisy latents, as in training, image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.devices import catch_out_of_memory, pad_batch_size, pad_rows, unet_memory_format
from pathsynth.core.progress import progress_bar
from pathsynth.core.seeds import Stream, make_generator
from pathsynth.data.images import as_batch
from pathsynth.diffusion.base import encode_prompts

if TYPE_CHECKING:
    import torch
    from diffusers import DDPMScheduler, StableDiffusionPipeline

# Images per batch; on a CPU rounded up by `pad_batch_size`. 8 of 224 px fit wherever a training step does.
BATCH_SIZE = 8
TOO_LARGE = "measuring denoising losses does not fit: use a smaller dataset.image_size"


def load_noise_scheduler(pipeline: StableDiffusionPipeline) -> DDPMScheduler:
    """Builds the scheduler that adds noise in training, with the base's noise schedule and prediction type."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipeline.scheduler.config)


def squared_errors(
    unet: torch.nn.Module,
    scheduler: DDPMScheduler,
    clean: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    hidden: torch.Tensor,
) -> torch.Tensor:
    """Computes the mean squared error of a prediction (Ho et al. 2020, equation 14; v: Salimans and Ho 2022), float32 (n,).

    Args:
        unet: the UNet, wrapped or not.
        scheduler: from `load_noise_scheduler`.
        clean: scaled latents (n, C, h, w).
        noise: unit noise (n, C, h, w).
        timesteps: int64 (n,).
        hidden: encoded prompts (n, tokens, width).
    """
    noisy = scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=unet_memory_format(clean.device.type))
    predicted = unet(noisy, timesteps, encoder_hidden_states=hidden).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(clean, noise, timesteps) if velocity else noise
    return (predicted.float() - target).square().mean(dim=(1, 2, 3))


def evenly_spaced_timesteps(scheduler: DDPMScheduler, count: int) -> torch.Tensor:
    """Returns the centres of `count` equal parts of the training's time steps, int64 (count,), ascending."""
    import torch

    return (2 * torch.arange(count) + 1) * scheduler.config.num_train_timesteps // (2 * count)


def padded_batches(count: int, device: str, batch_size: int) -> list[np.ndarray]:
    """Splits rows into batches.

    Args:
        count: number of rows, at least 1.
        device: type of the torch device, such as `cpu`.
        batch_size: largest batch; on a CPU rounded up by `pad_batch_size`.

    Returns:
        Indices, int64 (n,) each. On a CPU all have the same size, and the last row is repeated as padding.
    """
    size, rows = pad_batch_size(batch_size, device), pad_rows(count, device)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def encode_latents(
    pipeline: StableDiffusionPipeline, images: np.ndarray, batch_size: int = BATCH_SIZE, what: str = "encoding images"
) -> torch.Tensor:
    """Encodes images to the modes of their posteriors, which takes no random numbers.

    Args:
        pipeline: its VAE encodes.
        images: uint8 (N, H, W, 3); the sides are multiples of the VAE's scale factor.
        batch_size: images per batch; on a CPU rounded up by `pad_batch_size`.
        what: label of the progress bar.

    Returns:
        Scaled latents, float32 (N, C, h, w), on the pipeline's device.

    Raises:
        OutOfMemory: a batch does not fit into memory.
    """
    import torch

    device, latents = str(pipeline.device), []
    with torch.inference_mode(), catch_out_of_memory(TOO_LARGE):
        for rows in progress_bar(padded_batches(len(images), pipeline.device.type, batch_size), what):
            pixels = as_batch(images[rows], device, images.shape[1])
            latents.append(pipeline.vae.encode(pixels * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor)
        return torch.cat(latents)[: len(images)]


def denoising_losses(
    pipeline: StableDiffusionPipeline, latents: torch.Tensor, labels: np.ndarray, prompts: list[str], seed: int, steps: int
) -> np.ndarray:
    """Computes the mean denoising loss of every image over evenly spaced time steps.

    All images get the same noise at a time step, so that their losses do not differ by the noise.

    Args:
        pipeline: a float32 base, with or without LoRA.
        latents: N latents from `encode_latents`.
        labels: index of the prompt of each image, integers (N,).
        prompts: one per tissue.
        seed: seed of the noise.
        steps: number of time steps.

    Returns:
        float64 (N,).

    Raises:
        ModelError: a prompt is too long.
        OutOfMemory: a batch does not fit into memory.
    """
    import torch

    scheduler, device = load_noise_scheduler(pipeline), pipeline.device
    timesteps = evenly_spaced_timesteps(scheduler, steps)
    noise = torch.randn(steps, *latents.shape[1:], generator=make_generator(Stream.MEMORISATION, seed)).to(device)
    encoded, losses = encode_prompts(pipeline, prompts), []
    with torch.inference_mode(), catch_out_of_memory(TOO_LARGE):
        for rows in progress_bar(padded_batches(len(latents), device.type, BATCH_SIZE), "denoising images"):
            clean = latents[rows]
            errors = [
                squared_errors(
                    pipeline.unet,
                    scheduler,
                    clean,
                    noise[step].expand_as(clean),
                    timesteps[step].expand(len(rows)).to(device),
                    encoded[labels[rows]],
                )
                for step in range(steps)
            ]
            losses.append(torch.stack(errors).double().mean(dim=0).cpu().numpy())
    return np.concatenate(losses)[: len(latents)]
