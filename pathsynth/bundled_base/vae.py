"""Trains the VAE on textures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pathsynth.bundled_base.settings import VaeSettings
from pathsynth.bundled_base.steps import Stateful, run_steps, step_generator
from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.devices import autocast
from pathsynth.core.errors import TrainingError
from pathsynth.core.progress import progress_bar
from pathsynth.data.images import as_batch

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL


def train_vae(vae: AutoencoderKL, images: np.ndarray, settings: VaeSettings, seed: int, checkpoint: Checkpoint) -> None:
    """Trains the VAE in place on rotated and flipped textures, and sets its scaling factor.

    Args:
        vae: the untrained VAE.
        images: uint8 (N, size, size, 3).
        settings: the training.
        seed: seed of order, augmentation and noise.
        checkpoint: saves and resumes.
    """
    import torch

    optimizer = torch.optim.AdamW(vae.parameters(), settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps, pct_start=0.05)

    def step(index: int) -> dict[str, float]:
        rng, random = np.random.default_rng([seed, 3, index]), step_generator(seed, "VAE", index)
        pixels = _as_pixels(augment(images[rng.integers(len(images), size=settings.batch_size)], rng), vae.device)
        with autocast(vae.device.type, "bf16"):
            posterior = vae.encode(pixels).latent_dist
            recon = vae.decode(posterior.sample(random)).sample
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = vae_loss(recon.float(), pixels, settings.edge_weight) + settings.kl_weight * kl
        if not loss.isfinite():
            raise TrainingError(f"the VAE's loss is {loss.item()}; lower vae.learning_rate ({settings.learning_rate})")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return {"loss": loss.item(), "kl": kl.item()}

    others: dict[str, Stateful] = {"optimizer": optimizer, "schedule": schedule}
    run_steps("VAE", settings.steps, step, {"vae": vae}, others, lambda: None, checkpoint)
    vae.eval()
    latents = encode_textures(vae, images[:2048])
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))


def vae_loss(recon: torch.Tensor, target: torch.Tensor, edge_weight: float) -> torch.Tensor:
    """Mean absolute error of pixels, plus that of neighbour differences at three scales, which keeps edges sharp."""
    import torch.nn.functional as F

    loss = F.l1_loss(recon, target)
    for _ in range(3):
        for dim in (2, 3):
            loss = loss + edge_weight / 3 * F.l1_loss(recon.diff(dim=dim), target.diff(dim=dim))
        recon, target = F.avg_pool2d(recon, 2), F.avg_pool2d(target, 2)
    return loss


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flips and rotates each image (N, size, size, C) at random, by multiples of 90 degrees."""
    return np.stack([np.rot90(image[:, ::-1] if rng.random() < 0.5 else image, int(rng.integers(4))) for image in images])


def encode_textures(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Encodes images to the means of their unscaled latents, float16 (N, channels, h, w) on the CPU."""
    import torch

    batches = []
    with torch.inference_mode(), autocast(vae.device.type, "bf16"):
        for start in progress_bar(range(0, len(images), 128), "encoding"):
            pixels = _as_pixels(images[start : start + 128], vae.device)
            batches.append(vae.encode(pixels).latent_dist.mean.half().cpu())
    return torch.cat(batches).clone()


def reconstruction_error(vae: AutoencoderKL, images: np.ndarray) -> dict[str, float]:
    """Mean absolute error (of 255) and PSNR (dB) of images, uint8 (N, size, size, 3), after the VAE."""
    import torch

    with torch.inference_mode():
        pixels = torch.cat([_as_pixels(images[i : i + 64], vae.device) for i in range(0, len(images), 64)])
        recon = torch.cat([vae(batch).sample.clamp(-1, 1) for batch in pixels.split(64)])
    error = (recon - pixels) * 127.5
    psnr = 10 * torch.log10(255**2 / error.square().mean(dim=(1, 2, 3))).mean()
    return {"mean_absolute_error": round(float(error.abs().mean()), 3), "psnr_db": round(float(psnr), 2)}


def _as_pixels(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (n, size, size, 3) to NCHW float32 in [-1, 1]."""
    return as_batch(images, str(device), images.shape[1]) * 2 - 1
