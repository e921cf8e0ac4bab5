"""Reconstructions of images by the VAE of a base: what a generator that copies its training images would draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.devices import catch_out_of_memory, pad_batch_size, pad_rows
from pathsynth.core.progress import progress_bar
from pathsynth.data.generated import LabelledImages
from pathsynth.data.images import as_batch, as_images
from pathsynth.data.prepared import Prepared
from pathsynth.data.sampling import subsample_per_class

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


BATCH = 32


def copy_training_images(pipeline: StableDiffusionPipeline, prepared: Prepared, per_tissue: int, seed: int) -> LabelledImages:
    """Reconstructs training images by the base's VAE: what a generator that copies them would draw.

    Args:
        pipeline: the base.
        prepared: the real images.
        per_tissue: images of each tissue; all where there are fewer.
        seed: seed of the choice.

    Raises:
        OutOfMemory: a batch does not fit into memory.
    """
    labels = prepared.labels_of("train")
    selected = subsample_per_class(labels, np.full(len(prepared.slugs), per_tissue), seed)
    return LabelledImages(vae_copies(pipeline, prepared.images("train")[selected], BATCH), labels[selected])


def vae_copies(pipeline: StableDiffusionPipeline, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Encodes images and decodes the mode of the posterior, which takes no random numbers.

    Args:
        pipeline: its VAE reconstructs.
        images: uint8 (N, H, W, 3); the sides are multiples of the VAE's scale factor.
        batch_size: images per batch; on a CPU rounded up by `pad_batch_size`.

    Returns:
        uint8 (N, H, W, 3). If the channels of all images are equal, so are those of the copies.

    Raises:
        OutOfMemory: a batch does not fit into memory.
    """
    import torch

    device, size, copies = pipeline.device.type, pad_batch_size(batch_size, pipeline.device.type), np.empty_like(images)
    starts = range(0, len(images), size)
    with torch.inference_mode(), catch_out_of_memory("reconstructing images does not fit: use a smaller batch"):
        for start in progress_bar(starts, "reconstructing training images", hidden=len(starts) < 2):
            batch = images[start : start + size]
            pixels = as_batch(batch[pad_rows(len(batch), device)], str(pipeline.device), images.shape[1]).to(pipeline.vae.dtype)
            latents = pipeline.vae.encode(pixels * 2 - 1).latent_dist.mode()
            decoded = (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
            copies[start : start + size] = as_images(decoded)[: len(batch)]
    if (images == images[..., :1]).all():
        copies[:] = copies.mean(axis=3, keepdims=True).round()
    return copies
