"""Denoising losses: known answers, the same noise for all images, and no influence of the batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from pathsynth.core.seeds import Stream, make_generator
from pathsynth.diffusion.base import encode_prompts, load_base
from pathsynth.diffusion.denoising import denoising_losses, encode_latents, squared_errors

PROMPTS = ["pink dots", "purple rings"]


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    return load_base(tiny_base, "cpu")


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_error_is_the_squared_distance_from_the_target(prediction_type, offset):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([10, 500, 990])
    alpha = scheduler.alphas_cumprod[timesteps].view(3, 1, 1, 1)
    target = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    def unet(noisy, *_, **__):
        torch.testing.assert_close(noisy, alpha.sqrt() * clean + (1 - alpha).sqrt() * noise)
        return SimpleNamespace(sample=target + offset)

    errors = squared_errors(unet, scheduler, clean, noise, timesteps, torch.zeros(3, 1, 1))
    torch.testing.assert_close(errors, torch.full((3,), offset**2))


def test_latents_are_scaled_modes(pipeline):
    images = random_images(18)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        modes = torch.cat([pipeline.vae.encode(image[None]).latent_dist.mode() for image in pixels])
    expected = modes * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(encode_latents(pipeline, images), expected, rtol=1e-4, atol=1e-4)


def test_loss_is_the_mean_over_evenly_spaced_time_steps(pipeline):
    latents, hidden, errors = encode_latents(pipeline, random_images(1)), encode_prompts(pipeline, PROMPTS), []
    noises = torch.randn(2, 4, 8, 8, generator=make_generator(Stream.MEMORISATION, 3))
    for noise, timestep in zip(noises, (250, 750), strict=True):
        alpha = pipeline.scheduler.alphas_cumprod[timestep]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with torch.inference_mode():
            predicted = pipeline.unet(noisy, timestep, encoder_hidden_states=hidden[1:]).sample
        errors.append((predicted - alpha.sqrt() * noise + (1 - alpha).sqrt() * latents).square().mean().item())
    losses = denoising_losses(pipeline, latents, np.array([1]), PROMPTS, seed=3, steps=2)
    assert losses.dtype == np.float64 and losses.tolist() == pytest.approx([np.mean(errors)], rel=1e-4)


def test_loss_depends_on_image_prompt_and_seed_but_not_on_the_batch(pipeline):
    images, labels = random_images(20), np.arange(20) % 2
    images[7] = images[3]
    latents = encode_latents(pipeline, images)
    losses = denoising_losses(pipeline, latents, labels, PROMPTS, seed=3, steps=2)
    assert losses[7] == losses[3] and len(np.unique(losses)) == 19
    alone = denoising_losses(pipeline, encode_latents(pipeline, images[17:]), labels[17:], PROMPTS, seed=3, steps=2)
    assert alone.tolist() == losses[17:].tolist()
    for changed in ({"labels": 1 - labels}, {"seed": 4}, {"prompts": PROMPTS[::-1]}):
        arguments = {"labels": labels, "prompts": PROMPTS, "seed": 3} | changed
        assert not np.isclose(denoising_losses(pipeline, latents, **arguments, steps=2), losses, rtol=1e-6).any()
