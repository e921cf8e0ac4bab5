"""Trains the bundled base from scratch: draws textures, trains the VAE, encodes once, trains UNet and text encoder."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.bundled_base import models, textures
from pathsynth.bundled_base.settings import BaseSettings, Phase, TextureSettings, UnetSettings, VaeSettings
from pathsynth.core.devices import autocast
from pathsynth.core.errors import TrainingError
from pathsynth.core.io import read_json, write_json
from pathsynth.core.progress import progress_bar
from pathsynth.data.images import as_batch

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


def train_base(settings: BaseSettings, out: Path, device: str) -> dict:
    """Trains the base and saves it to the folder `out`.

    Returns:
        `reconstruction`, the VAE's error on unseen textures, and `parameters`, the number of parameters of each part.
    """
    images, captions = draw_pool(settings.textures, settings.seed, os.cpu_count() or 1)
    vae = train_vae(images, settings.vae, settings.seed, device)
    latents = encode_images(vae, images, device) * vae.config.scaling_factor
    tokenizer, text_encoder, unet = train_unet(latents, captions, settings, device)
    save_pipeline(out, vae, tokenizer, text_encoder, unet)
    unseen = settings.textures.model_copy(update={"count": 512})
    return {
        "reconstruction": reconstruction_error(vae, draw_pool(unseen, settings.seed + 1, 1)[0], device),
        "parameters": {
            name: sum(p.numel() for p in part.parameters())
            for name, part in (("vae", vae), ("text_encoder", text_encoder), ("unet", unet))
        },
    }


def reconstruction_error(vae: AutoencoderKL, images: np.ndarray, device: str) -> dict[str, float]:
    """Mean absolute error (of 255) and PSNR (dB) of images, uint8 (N, size, size, 3), after the VAE."""
    import torch

    with torch.inference_mode():
        pixels = torch.cat([_as_pixels(images[i : i + 64], device) for i in range(0, len(images), 64)])
        recon = torch.cat([vae(batch).sample.clamp(-1, 1) for batch in pixels.split(64)])
    error = (recon - pixels) * 127.5
    psnr = 10 * torch.log10(255**2 / error.square().mean(dim=(1, 2, 3))).mean()
    return {"mean_absolute_error": round(float(error.abs().mean()), 3), "psnr_db": round(float(psnr), 2)}


def draw_pool(settings: TextureSettings, seed: int, workers: int) -> tuple[np.ndarray, list[str]]:
    """Draws the pool of textures.

    Returns:
        Images, uint8 (count, size, size, 3), and their captions.
    """
    kinds = textures.invent_kinds(seed, settings.kinds)
    draw = partial(textures.sample, seed, size=settings.image_size, kinds=kinds, kind_share=settings.kind_share)
    images = np.empty((settings.count, settings.image_size, settings.image_size, 3), np.uint8)
    captions = []
    # spawned, because forking a process with torch's threads may hang
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        drawn = pool.map(draw, range(settings.count), chunksize=256)
        for i, (image, caption) in enumerate(progress_bar(drawn, "drawing textures", settings.count)):
            images[i] = image
            captions.append(caption)
    return images, captions


def _as_pixels(images: np.ndarray, device: str) -> torch.Tensor:
    """uint8 (n, size, size, 3) to NCHW float32 in [-1, 1]."""
    return as_batch(images, device, images.shape[1]) * 2 - 1


def vae_loss(recon: torch.Tensor, target: torch.Tensor, edge_weight: float) -> torch.Tensor:
    """Mean absolute error of pixels, plus that of neighbour differences at three scales, which keeps edges sharp."""
    import torch.nn.functional as F

    loss = F.l1_loss(recon, target)
    for _ in range(3):
        for dim in (2, 3):
            loss = loss + edge_weight / 3 * F.l1_loss(recon.diff(dim=dim), target.diff(dim=dim))
        recon, target = F.avg_pool2d(recon, 2), F.avg_pool2d(target, 2)
    return loss


def train_vae(images: np.ndarray, settings: VaeSettings, seed: int, device: str) -> AutoencoderKL:
    """Trains the VAE on rotated and flipped textures, and sets its scaling factor.

    Args:
        images: uint8 (N, size, size, 3).
        settings: architecture and training.
        seed: seed of weights, order and augmentation.
        device: torch device.
    """
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 3])
    vae = models.build_vae(settings, images.shape[1]).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps, pct_start=0.05)
    steps = progress_bar(range(settings.steps), "training VAE")
    for _ in steps:
        pixels = _as_pixels(augment(images[rng.integers(len(images), size=settings.batch_size)], rng), device)
        with autocast(device, "bf16"):
            posterior = vae.encode(pixels).latent_dist
            recon = vae.decode(posterior.sample()).sample
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = vae_loss(recon.float(), pixels, settings.edge_weight) + settings.kl_weight * kl
        if not loss.isfinite():
            raise TrainingError(f"the VAE's loss is {loss.item()}; lower vae.learning_rate ({settings.learning_rate})")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        steps.set_postfix(loss=f"{loss.item():.4f}", kl=f"{kl.item():.2f}")
    latents = encode_images(vae, images[:2048], device)
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    return vae.eval()


def encode_images(vae: AutoencoderKL, images: np.ndarray, device: str) -> torch.Tensor:
    """Encodes images to the means of their unscaled latents, float16 (N, channels, h, w) on the CPU."""
    import torch

    batches = []
    with torch.inference_mode(), autocast(device, "bf16"):
        for start in progress_bar(range(0, len(images), 128), "encoding"):
            pixels = _as_pixels(images[start : start + 128], device)
            batches.append(vae.encode(pixels).latent_dist.mean.half().cpu())
    return torch.cat(batches).clone()


def train_unet(
    latents: torch.Tensor, captions: list[str], settings: BaseSettings, device: str
) -> tuple[CLIPTokenizer, CLIPTextModel, UNet2DConditionModel]:
    """Trains UNet and text encoder together: v-prediction (Salimans and Ho 2022), min-SNR weights (Hang et al. 2023), EMA.

    Args:
        latents: scaled, float16 (N, channels, h, w).
        captions: N captions.
        settings: architecture and training.
        device: torch device.

    Returns:
        Tokenizer, text encoder and UNet, with averaged weights.
    """
    import torch

    torch.manual_seed(settings.seed)
    tokenizer = models.build_tokenizer(captions, settings.textures)
    text_encoder = models.build_text_encoder(tokenizer, settings.unet).to(device)
    unet = models.build_unet(settings.unet, latents.shape[1], latents.shape[2]).to(device, memory_format=torch.channels_last)
    forward = torch.compile(unet) if settings.compile else unet
    batches = _Batches(latents, tokenize(tokenizer, captions), tokenize(tokenizer, [""])[0], settings.unet, device)
    for phase in settings.unet.phases:
        _run_phase(phase, settings.unet.ema_decay, batches, text_encoder, unet, forward)
    return tokenizer, text_encoder, unet


@dataclass(frozen=True)
class _Batches:
    """Random latents with the tokens of their captions, some of which are empty for classifier-free guidance."""

    latents: torch.Tensor
    tokens: torch.Tensor
    empty: torch.Tensor
    settings: UnetSettings
    device: str

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        indices = torch.randint(len(self.latents), (self.settings.batch_size,))
        ids = self.tokens[indices]
        ids = torch.where(torch.rand(len(ids), 1) < self.settings.caption_dropout, self.empty, ids)
        latents = self.latents[indices].float().to(self.device, memory_format=torch.channels_last)
        return latents, ids.to(self.device)


def _run_phase(
    phase: Phase, decay: float, batches: _Batches, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, forward: Callable
) -> None:
    """Trains for one phase with a new optimizer, then copies the averaged weights into the models."""
    import torch
    from diffusers.training_utils import EMAModel

    scheduler = build_scheduler()
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, phase.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, phase.learning_rate, phase.steps, pct_start=phase.warmup_steps / phase.steps
    )
    ema = EMAModel(parameters, decay=decay, use_ema_warmup=True, inv_gamma=1.0, power=0.8)
    steps = progress_bar(range(phase.steps), "training UNet")
    for _ in steps:
        clean, ids = batches.draw()
        with autocast(batches.device, "bf16"):
            hidden = text_encoder(ids).last_hidden_state
        loss = _velocity_loss(forward, scheduler, clean, hidden, phase.snr_gamma)
        if not loss.isfinite():
            raise TrainingError(f"the UNet's loss is {loss.item()}; lower unet.phases.learning_rate ({phase.learning_rate})")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.step(parameters)
        steps.set_postfix(loss=f"{loss.item():.4f}")
    ema.copy_to(parameters)


def _velocity_loss(
    unet: Callable, scheduler: DDIMScheduler, clean: torch.Tensor, hidden: torch.Tensor, snr_gamma: float | None
) -> torch.Tensor:
    """Mean squared error of the velocity (Salimans and Ho 2022), with min-SNR weights if a gamma is given."""
    import torch
    from diffusers.training_utils import compute_snr

    noise = torch.randn_like(clean)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    with autocast(clean.device.type, "bf16"):
        output = unet(noisy, timesteps, encoder_hidden_states=hidden).sample
    errors = (output.float() - scheduler.get_velocity(clean, noise, timesteps)).square().mean(dim=(1, 2, 3))
    if snr_gamma is None:
        return errors.mean()
    snr = compute_snr(scheduler, timesteps)
    return (snr.clamp(max=snr_gamma) / (snr + 1) * errors).mean()


def build_scheduler() -> DDIMScheduler:
    """Builds Stable Diffusion's noise schedule with a larger `beta_end`, so that almost no signal is left at the last step.

    With the usual 0.012 the mean of a 16 x 16 latent survives at about one standard deviation, and images sampled from pure
    noise would all have an average colour. v-prediction is well defined at zero signal; epsilon is not.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, int64 (N, model_max_length), padded and truncated as the pipeline does."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


def save_pipeline(folder: Path, vae, tokenizer, text_encoder, unet) -> None:
    """Saves the parts as a StableDiffusionPipeline folder with fp16 weights and no safety checker."""
    from diffusers import StableDiffusionPipeline

    vae, text_encoder, unet = (copy.deepcopy(part).half() for part in (vae, text_encoder, unet))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # by default transformers loads the dtype on disk but diffusers float32, which a plain from_pretrained must not mix
    config = folder / "text_encoder" / "config.json"
    write_json(config, read_json(config) | {"dtype": "float32"})


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flips and rotates each image (N, size, size, C) at random, by multiples of 90 degrees."""
    return np.stack([np.rot90(image[:, ::-1] if rng.random() < 0.5 else image, int(rng.integers(4))) for image in images])
