"""Latents of the training images, encoded once into a file that all processes map into memory and no GPU has to hold."""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.devices import Stream, generator, memory_faults
from pathsynth.files import create_npy
from pathsynth.params import ObjectiveSettings
from pathsynth.pixels import as_batch
from pathsynth.processes import ALONE, Processes
from pathsynth.progress import bar

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
    turns = range(4 if objective.quarter_turns else 1)
    rotations = range(ROTATIONS) if objective.rotation_degrees else (None,)
    return [View(*view) for view in itertools.product(flips, turns, rotations)]


@dataclass(frozen=True)
class Latents:
    """Posteriors of images in views. Latents are drawn anew at every use, as an encoder inside the loop would do.

    Attributes:
        mean, std: float16 (pairs, C, h, w), mapped from disk.
        rows: int64 (views, images); the row of a pair in `mean` and `std`, -1 for a pair that is never drawn.
        labels: int64 (images,).
    """

    mean: np.ndarray
    std: np.ndarray
    rows: np.ndarray
    labels: torch.Tensor

    def draw(self, views: torch.Tensor, chosen: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Unscaled latents, float32 (n, C, h, w), of images `chosen` in `views`, with unit noise of the same shape."""
        import torch

        rows = self.rows[views.numpy(), chosen.numpy()]
        return torch.from_numpy(self.mean[rows]).float() + torch.from_numpy(self.std[rows]).float() * noise


def latent_shape(pipeline: StableDiffusionPipeline, image_size: int) -> tuple[int, int, int]:
    """(C, h, w) of an image's latents."""
    side = image_size // pipeline.vae_scale_factor
    return pipeline.vae.config.latent_channels, side, side


def encode(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    labels: np.ndarray,
    views: list[View],
    wanted: np.ndarray,
    degrees: float,
    seed: int,
    folder: Path,
    processes: Processes = ALONE,
) -> Latents:
    """Encodes the wanted images in the wanted views, shared by the processes.

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

    rows = np.where(wanted.reshape(-1), np.cumsum(wanted) - 1, -1).reshape(wanted.shape)
    shape = (int(wanted.sum()), *latent_shape(pipeline, images.shape[1]))
    paths = (folder / "mean.npy", folder / "std.npy")
    if processes.main:
        for path in paths:
            create_npy(path, shape, np.dtype(np.float16))
    processes.gather(None)
    mean, std = (np.load(path, mmap_mode="r+") for path in paths)
    size = min(MOST_IMAGES, max(1, MOST_PIXELS // images.shape[1] ** 2))
    jobs = [
        (number, some)
        for number in range(len(views))
        for some in np.array_split(*_cuts(np.flatnonzero(wanted[number]), size))
        if len(some)
    ]
    with torch.inference_mode(), memory_faults("no room to encode images: use a smaller dataset.image_size"):
        for number, some in bar(jobs[processes.index :: processes.count], "encoding images"):
            pixels = _seen(images[some], views[number], _angles(degrees, seed, number, len(images))[some], pipeline)
            posterior = pipeline.vae.encode(pixels * 2 - 1).latent_dist
            mean[rows[number, some]] = posterior.mean.half().cpu().numpy()
            std[rows[number, some]] = posterior.std.half().cpu().numpy()
    mean.flush()
    std.flush()
    processes.gather(None)
    return Latents(mean, std, rows, torch.from_numpy(np.asarray(labels, np.int64)))


@contextmanager
def shared_folder(parent: Path, processes: Processes) -> Iterator[Path]:
    """A folder under `parent` for all processes, gone in the end."""
    folder = None
    if processes.main:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="latents-", dir=parent))
    try:
        yield processes.gather(folder)[0]
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _cuts(indices: np.ndarray, size: int) -> tuple[np.ndarray, list[int]]:
    """Arguments of numpy.array_split for pieces of `size`."""
    return indices, list(range(size, len(indices), size))


def _angles(degrees: float, seed: int, view: int, count: int) -> np.ndarray:
    """The rotation of every image in a view, float32 (count,) in degrees."""
    import torch

    random = generator(Stream.LORA_VIEWS, seed, view)
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
