"""Trains the bundled base: draws textures, trains the VAE, encodes once, trains UNet and text encoder.

The random numbers of a step depend only on the seed and the number of the step, so an interrupted training goes on as if it had
not been interrupted.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.bundled_base import textures
from pathsynth.bundled_base.parts import Parts, build_parts, load_parts, save_pipeline
from pathsynth.bundled_base.settings import BaseSettings, TextureSettings
from pathsynth.bundled_base.unet import train_unet
from pathsynth.bundled_base.vae import encode_textures, reconstruction_error, train_vae
from pathsynth.core.checkpoint import NO_CHECKPOINT, Checkpoint
from pathsynth.core.progress import progress_bar

if TYPE_CHECKING:
    import torch

# The state of a checkpoint that holds captions, encoded textures and the VAE that encoded them.
POOL = "textures"


def train_base(
    settings: BaseSettings, out: Path, device: str, checkpoint: Checkpoint = NO_CHECKPOINT, start: Path | None = None
) -> dict:
    """Trains the base and saves it to the folder `out`.

    Args:
        settings: textures, architectures and training.
        out: output folder.
        device: torch device.
        checkpoint: saves the training at intervals, and resumes an interrupted one.
        start: a base of these architectures, whose UNet and text encoder are trained further; VAE and tokenizer are kept.

    Returns:
        `reconstruction`, the VAE's error on unseen textures, and `parameters`, the number of parameters of each part.

    Raises:
        TrainingError: a loss is NaN or infinite.
        ModelError: `start` does not load, or has other architectures.
    """
    parts, latents, captions = _prepare_pool(settings, device, checkpoint, start)
    train_unet(parts, latents, captions, settings, checkpoint)
    save_pipeline(out, parts)
    unseen = settings.textures.model_copy(update={"count": 512})
    return {
        "reconstruction": reconstruction_error(parts.vae, draw_pool(unseen, settings.seed + 1, 1)[0]),
        "parameters": {
            name: sum(p.numel() for p in part.parameters())
            for name, part in (("vae", parts.vae), ("text_encoder", parts.text_encoder), ("unet", parts.unet))
        },
    }


def _prepare_pool(
    settings: BaseSettings, device: str, checkpoint: Checkpoint, start: Path | None
) -> tuple[Parts, torch.Tensor, list[str]]:
    """Draws and encodes the textures with the trained VAE, a quarter of an hour that the checkpoint saves when resuming."""

    def make_parts(captions: list[str]) -> Parts:
        return build_parts(settings, captions, device) if start is None else load_parts(start, settings, device)

    if saved := checkpoint.load(POOL):
        parts = make_parts(saved["captions"])
        parts.vae.load_state_dict(saved["vae"])
        parts.vae.register_to_config(scaling_factor=saved["scaling_factor"])
        return parts, saved["latents"], saved["captions"]
    images, captions = draw_pool(settings.textures, settings.seed, os.cpu_count() or 1)
    parts = make_parts(captions)
    if start is None:
        train_vae(parts.vae, images, settings.vae, settings.seed, checkpoint)
    factor = parts.vae.config.scaling_factor
    latents = encode_textures(parts.vae, images) * factor
    state = {"captions": captions, "vae": parts.vae.state_dict(), "scaling_factor": factor, "latents": latents}
    checkpoint.save(POOL, state)
    return parts, latents, captions


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
