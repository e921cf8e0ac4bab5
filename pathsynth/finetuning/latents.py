"""Latents of the training images, encoded once into files that all processes map into memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.devices import catch_out_of_memory
from pathsynth.core.distributed import ALONE, Processes
from pathsynth.core.errors import DataError
from pathsynth.core.io import os_error_reason
from pathsynth.core.progress import progress_bar
from pathsynth.data.images import as_batch
from pathsynth.data.prepared import Prepared
from pathsynth.finetuning.batches import BatchSchedule, View

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

# Encoding takes more memory per image than training. 8 images of 224 px fit wherever a training step does; 64 is the maximum.
MAX_PIXELS, MAX_IMAGES = 8 * 224 * 224, 64


@dataclass(frozen=True)
class Latents:
    """Latent posteriors of images in their views, sampled at every use, as if the encoder ran in the training loop.

    Attributes:
        parts: float16 (pairs, 2, C, h, w) each, mapped from disk: mean and standard deviation of the pairs of image and view
            that one process encoded.
        rows: int64 (views, images), the row of a pair in the concatenated parts, -1 if it was not encoded.
        labels: int64 (images,).
    """

    parts: tuple[np.ndarray, ...]
    rows: np.ndarray
    labels: torch.Tensor

    def sample(self, views: torch.Tensor, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Samples unscaled latents of `images` in `views`, float32 (n, C, h, w), with unit noise of the same shape.

        Raises:
            ValueError: a pair was not encoded.
        """
        import torch

        rows = self.rows[views.numpy(), images.numpy()]
        if rows.min() < 0:
            raise ValueError("an image was not encoded in the requested view")
        posteriors, start = np.empty((len(rows), *self.parts[0].shape[1:]), np.float16), 0
        for part in self.parts:
            inside = (rows >= start) & (rows < start + len(part))
            posteriors[inside] = part[rows[inside] - start]
            start += len(part)
        mean, std = torch.from_numpy(posteriors).float().unbind(1)
        return mean + std * noise


def latent_shape(pipeline: StableDiffusionPipeline, image_size: int) -> tuple[int, int, int]:
    """Shape (C, h, w) of the latents of an image."""
    side = image_size // pipeline.vae_scale_factor
    return pipeline.vae.config.latent_channels, side, side


def encode_images(
    pipeline: StableDiffusionPipeline,
    prepared: Prepared,
    schedule: BatchSchedule,
    folder: Path,
    processes: Processes = ALONE,
) -> Latents:
    """Encodes the training images in the views that occur in the schedule; the processes share the work.

    Each process writes its own file and closes it before the others open it, which also works on network file systems.

    Args:
        pipeline: its VAE encodes.
        prepared: images and labels.
        schedule: the batches of the training.
        folder: temporary folder, the same for all processes.
        processes: the processes that share the work.

    Raises:
        DataError: the latents cannot be written, for example to a full disk.
        OutOfMemory: a batch does not fit into memory.
    """
    import torch

    images, used = prepared.images("train"), schedule.used_views()
    batches = _split_batches(used, min(MAX_IMAGES, max(1, MAX_PIXELS // prepared.image_size**2)))
    shares = [[batches[i] for i in share] for share in np.array_split(np.arange(len(batches)), processes.count)]
    try:
        with (
            torch.inference_mode(),
            catch_out_of_memory("encoding images does not fit: use a smaller dataset.image_size"),
            open(folder / f"{processes.index}.bin", "wb") as file,
        ):
            for view, indices in progress_bar(shares[processes.index], "encoding images"):
                pixels = as_batch(images[indices], str(pipeline.device), prepared.image_size)
                pixels = _transform(pixels, schedule.views[view], schedule.angles(view)[indices])
                posterior = pipeline.vae.encode(pixels * 2 - 1).latent_dist
                file.write(torch.stack([posterior.mean, posterior.std], 1).half().cpu().numpy().tobytes())
    except OSError as error:
        raise DataError(folder, f"could not be written: {os_error_reason(error)}") from error
    processes.gather(None)
    lengths = [sum(len(indices) for _, indices in share) for share in shares]
    parts = tuple(
        np.memmap(folder / f"{index}.bin", np.float16, "r", shape=(length, 2, *schedule.latent_shape))
        for index, length in enumerate(lengths)
        # an empty file cannot be mapped
        if length
    )
    rows = np.where(used, np.cumsum(used).reshape(used.shape) - 1, -1)
    return Latents(parts, rows, torch.from_numpy(np.asarray(prepared.labels_of("train"), np.int64)))


def _split_batches(used: np.ndarray, size: int) -> list[tuple[int, np.ndarray]]:
    """Index of a view and at most `size` images that are used in it, by view, then image."""
    images_by_view = [(view, np.flatnonzero(row)) for view, row in enumerate(used)]
    return [(view, images[start : start + size]) for view, images in images_by_view for start in range(0, len(images), size)]


def _transform(pixels: torch.Tensor, view: View, angles: np.ndarray) -> torch.Tensor:
    """Applies a view to NCHW pixels."""
    pixels = (pixels.flip(3) if view.flip else pixels).rot90(view.quarters, (2, 3))
    return pixels if view.rotation is None else _rotate(pixels, angles)


def _rotate(pixels: torch.Tensor, degrees: np.ndarray) -> torch.Tensor:
    """Rotates each image of a batch about its centre; the corners become black."""
    import torch
    import torch.nn.functional as F

    radians = torch.from_numpy(degrees).to(pixels) * (math.pi / 180)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    matrices = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrices, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
