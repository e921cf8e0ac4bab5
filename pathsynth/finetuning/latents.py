"""Latents of the training images, encoded once into a file that all processes map into memory and no GPU has to hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.devices import catch_out_of_memory
from pathsynth.core.distributed import ALONE, Processes
from pathsynth.core.errors import DataError
from pathsynth.core.io import read_npy, reason, write_npy_in_pieces
from pathsynth.core.progress import bar
from pathsynth.core.seeds import Stream, generator
from pathsynth.data.images import as_batch
from pathsynth.finetuning.settings import ObjectiveSettings

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

# Random rotations of each image, so that the views of an image can be counted and encoded before training.
ROTATIONS = 4
# Encoding takes more memory than a training step: 8 images of 224 px at a time fit where the step does, and never more than 64.
MOST_PIXELS, MOST_IMAGES = 8 * 224 * 224, 64


@dataclass(frozen=True)
class View:
    """One way to look at an image: flipped left to right or not, quarter turns, number of a random rotation or None."""

    flip: bool
    turns: int
    rotation: int | None


def views_of(objective: ObjectiveSettings) -> list[View]:
    """All views that the objective allows; the first one is the image as it is, unless it rotates."""
    flips = (False, True)[: 1 + objective.flips]
    turns = range(4 if objective.rotate90 else 1)
    rotations = range(ROTATIONS) if objective.rotation_degrees else (None,)
    return [View(*view) for view in itertools.product(flips, turns, rotations)]


@dataclass(frozen=True)
class Latents:
    """Posteriors of images in views. Latents are drawn anew at every use, as an encoder inside the loop would do.

    Attributes:
        parts: float16 (pairs, 2, C, h, w) each, mapped from disk; mean and deviation of the pairs that one process encoded.
        rows: int64 (views, images); the row of a pair in all parts together, -1 for a pair that is never drawn.
        labels: int64 (images,).
    """

    parts: tuple[np.ndarray, ...]
    rows: np.ndarray
    labels: torch.Tensor

    def draw(self, views: torch.Tensor, chosen: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Unscaled latents, float32 (n, C, h, w), of images `chosen` in `views`, with unit noise of the same shape.

        Raises:
            ValueError: for a pair that was not encoded.
        """
        import torch

        rows = self.rows[views.numpy(), chosen.numpy()]
        if rows.min() < 0:
            raise ValueError("an image in a view that was not encoded")
        found, start = np.empty((len(rows), *self.parts[0].shape[1:]), np.float16), 0
        for part in self.parts:
            own = (rows >= start) & (rows < start + len(part))
            found[own] = part[rows[own] - start]
            start += len(part)
        mean, std = torch.from_numpy(found).float().unbind(1)
        return mean + std * noise


def latent_shape(pipeline: StableDiffusionPipeline, image_size: int) -> tuple[int, int, int]:
    """(C, h, w) of an image's latents."""
    side = image_size // pipeline.vae_scale_factor
    return pipeline.vae.config.latent_channels, side, side


def encode(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    views: list[View],
    wanted: np.ndarray,
    degrees: float,
    seed: int,
    folder: Path,
    processes: Processes = ALONE,
) -> Latents:
    """Encodes the wanted images in the wanted views, shared by the processes.

    Each process writes a file of its own and closes it before the others open it, which holds on shared file systems too.

    Args:
        pipeline: whose VAE encodes.
        images: uint8 (N, H, W, 3).
        labels: integers (N,).
        views: the views that `wanted` has rows for.
        wanted: bool (views, N).
        degrees: bound of the random rotations of views that rotate.
        seed: global seed, of the rotations.
        folder: where the files go, the same one for all processes.
        processes: who shares the work.

    Raises:
        DataError: the disk is full.
        MemoryFault: a batch does not fit into memory.
    """
    import torch

    jobs = _jobs(wanted, min(MOST_IMAGES, max(1, MOST_PIXELS // images.shape[1] ** 2)))
    shares = np.array_split(np.arange(len(jobs)), processes.count)
    own = [jobs[number] for number in shares[processes.index]]
    shape = (sum(len(some) for _, some in own), 2, *latent_shape(pipeline, images.shape[1]))

    def posteriors() -> Iterator[np.ndarray]:
        for number, some in bar(own, "encoding images"):
            pixels = _seen(images[some], views[number], _angles(degrees, seed, number, len(images))[some], pipeline)
            posterior = pipeline.vae.encode(pixels * 2 - 1).latent_dist
            yield torch.stack([posterior.mean, posterior.std], 1).half().cpu().numpy()

    try:
        with torch.inference_mode(), catch_out_of_memory("no room to encode images: use a smaller dataset.image_size"):
            write_npy_in_pieces(folder / f"{processes.index}.npy", shape, np.dtype(np.float16), posteriors())
    except OSError as error:
        raise DataError(folder, f"could not be written: {reason(error)}") from error
    processes.gather(None)
    # an empty file cannot be mapped
    parts = tuple(read_npy(folder / f"{index}.npy") for index, share in enumerate(shares) if len(share))
    rows = np.where(wanted.reshape(-1), np.cumsum(wanted) - 1, -1).reshape(wanted.shape)
    return Latents(parts, rows, torch.from_numpy(np.asarray(labels, np.int64)))


def _jobs(wanted: np.ndarray, size: int) -> list[tuple[int, np.ndarray]]:
    """Number of a view and at most `size` images that are wanted in it, by view, then image."""
    found = [(number, np.flatnonzero(row)) for number, row in enumerate(wanted)]
    return [(number, some[start : start + size]) for number, some in found for start in range(0, len(some), size)]


def _angles(degrees: float, seed: int, view: int, count: int) -> np.ndarray:
    """The rotation of every image in a view, float32 (count,) in degrees."""
    import torch

    random = generator(Stream.LORA_ROTATIONS, seed, view)
    return ((torch.rand(count, generator=random) * 2 - 1) * degrees).numpy()


def _seen(images: np.ndarray, view: View, angles: np.ndarray, pipeline: StableDiffusionPipeline) -> torch.Tensor:
    """Images uint8 (n, H, W, 3) as they look in a view, NCHW float32 in [0, 1]."""
    pixels = as_batch(images, str(pipeline.device), images.shape[1])
    pixels = (pixels.flip(3) if view.flip else pixels).rot90(view.turns, (2, 3))
    return pixels if view.rotation is None else _rotated(pixels, angles)


def _rotated(pixels: torch.Tensor, degrees: np.ndarray) -> torch.Tensor:
    """Each image of a batch turned about its middle; black comes in at the corners."""
    import torch
    import torch.nn.functional as F

    radians = torch.from_numpy(degrees).to(pixels) * (math.pi / 180)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    turns = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(turns, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
