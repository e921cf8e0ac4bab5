"""Latents of the training images, encoded once and kept on disk for all trainings on the same images."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from pathsynth.core.devices import autocast, catch_out_of_memory, pad_batch_size, supported_precision
from pathsynth.core.distributed import ALONE, Processes
from pathsynth.core.environment import describe_hardware, package_versions
from pathsynth.core.errors import DataError, OutOfMemory
from pathsynth.core.io import atomic_write, compute_sha256, read_npy, write_npy_chunks
from pathsynth.core.progress import progress_bar
from pathsynth.core.scratch import remove_abandoned
from pathsynth.data.images import as_batch, as_pixels
from pathsynth.data.prefetch import prefetch
from pathsynth.data.prepared import Prepared
from pathsynth.finetuning.batches import BatchSchedule, View

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline

# Images to encode at once, halved until they fit into memory. A CPU that runs out of it kills the process instead.
MAX_IMAGES, MAX_CPU_PIXELS = 64, 16 * 224 * 224
# Bytes of latents in a file. An interrupted run loses at most one file of each process.
FILE_BYTES = 2**25
# Ending of a file of pairs, int64 (n, 2): code of the view, index of the image. It is written after the file of their latents.
# Both begin with a hash of their content, because damaged latents would train without an error.
PAIRS = ".pairs.npy"
# Code on which latents depend, besides packages. Any other change keeps them.
CODE = ("core/devices.py", "core/seeds.py", "data/images.py", "finetuning/batches.py", "finetuning/latents.py")


@dataclass(frozen=True)
class Latents:
    """Latent posteriors of images in their views, sampled at every use, as if the encoder ran in the training loop.

    Attributes:
        parts: float16 (pairs, 2, C, h, w) each, mapped from disk: mean and standard deviation of pairs of image and view.
        rows: int64 (views, images), the row of a pair in the concatenated parts, -1 if it was not encoded.
        labels: int64 (images,).
        folder: where the files are; None for latents that are not on disk.
    """

    parts: tuple[np.ndarray, ...]
    rows: np.ndarray
    labels: torch.Tensor
    folder: Path | None = None

    def sample(self, views: torch.Tensor, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Samples unscaled latents of `images` in `views`, float32 (n, C, h, w), with unit noise of the same shape.

        Raises:
            ValueError: a pair was not encoded.
        """
        import torch

        rows = self.rows[views.numpy(), images.numpy()]
        if rows.min() < 0:
            raise ValueError("an image was not encoded in the requested view")
        posteriors = np.empty((len(rows), *self.parts[0].shape[1:]), np.float16)
        starts = np.cumsum([0, *map(len, self.parts)])
        files = np.searchsorted(starts, rows, side="right") - 1
        for file in np.unique(files):
            inside = files == file
            posteriors[inside] = self.parts[file][rows[inside] - starts[file]]
        mean, std = torch.from_numpy(posteriors).float().unbind(1)
        return mean + std * noise

    def mark_used(self) -> None:
        """Keeps other trainings from removing the files as abandoned."""
        if self.folder is not None:
            with suppress(OSError):
                os.utime(self.folder)


def latent_shape(pipeline: StableDiffusionPipeline, image_size: int) -> tuple[int, int, int]:
    """Shape (C, h, w) of the latents of an image."""
    side = image_size // pipeline.vae_scale_factor
    return pipeline.vae.config.latent_channels, side, side


def blank_latents(prepared: Prepared, schedule: BatchSchedule) -> Latents:
    """Latents of zeros for every pair of image and view, to try a training step before any image is encoded."""
    zeros = np.zeros((1, 2, *schedule.latent_shape), np.float16)
    return Latents((zeros,), np.zeros((len(schedule.views), schedule.num_images), np.int64), _labels(prepared))


def encode_images(
    pipeline: StableDiffusionPipeline,
    prepared: Prepared,
    schedule: BatchSchedule,
    scratch: Path,
    processes: Processes = ALONE,
) -> Latents:
    """Encodes the training images in the views that occur in the schedule, unless an earlier training has.

    Latents are kept in `scratch`/latents, in a folder whose name is a hash of images, VAE and number format, and are removed if
    no training has used them for a week. The missing ones are encoded by all processes; each file is written by one and closed
    before others open it, which also works on network file systems.

    Args:
        pipeline: its VAE encodes, in bf16 if the frozen weights of the training are in bf16. It is on the CPU afterwards.
        prepared: images and labels.
        schedule: the batches of the training.
        scratch: folder for temporary files, the same for all processes.
        processes: the processes that share the work.

    Raises:
        DataError: the latents cannot be written, for example to a full disk.
        OutOfMemory: a single image does not fit into memory.
    """
    device, precision = str(pipeline.unet.device), "bf16" if schedule.settings.training.weight_dtype == "bf16" else "no"
    folder, names = Path(), []
    if processes.main:
        remove_abandoned(scratch / "latents")
        folder = scratch / "latents" / _key(pipeline.vae, prepared, schedule, supported_precision(device, precision))
        names = sorted(path.name for path in folder.glob(f"*{PAIRS}") if _is_intact(path))
    # the choice of the main process, since each may see other files
    folder, names = processes.gather((folder, names))[0]
    used = schedule.used_views()
    rows = _find_rows(folder, names, schedule)
    missing = used & (rows < 0)
    if processes.main and missing.sum() < used.sum():
        click.echo(f"latents: {used.sum() - missing.sum()} of {used.sum()} are reused", err=True)
    if missing.any():
        own = np.array_split(np.argwhere(missing), processes.count)[processes.index]
        with vae_on_device(pipeline):
            written = _encode_missing(pipeline.vae, device, precision, prepared, schedule, own, folder)
        names += [name for each in processes.gather(written) for name in each]
        rows = _find_rows(folder, names, schedule)
    parts = tuple(read_npy(_posteriors_path(folder / name)) for name in names)
    latents = Latents(parts, rows, _labels(prepared), folder)
    latents.mark_used()
    return latents


@contextmanager
def vae_on_device(pipeline: StableDiffusionPipeline) -> Iterator[None]:
    """Moves the VAE to the UNet's device, and afterwards to the CPU, where it takes no memory from the training."""
    pipeline.vae.to(pipeline.unet.device)
    try:
        yield
    finally:
        pipeline.vae.to("cpu")


def _key(vae: AutoencoderKL, prepared: Prepared, schedule: BatchSchedule, precision: str) -> str:
    """Hash of everything that latents depend on but view and image; random rotations have their angles from the seed."""
    import torch

    weights, degrees = hashlib.sha256(), schedule.settings.objective.rotation_degrees
    for name, value in vae.state_dict().items():
        weights.update(name.encode())
        weights.update(value.cpu().contiguous().numpy().data)
    content = {
        "images": prepared.checksums["train"],
        "vae": weights.hexdigest(),
        "precision": precision,
        "rotation": [schedule.seed, degrees] if degrees else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "hardware": describe_hardware(),
        "versions": package_versions(),
        "code": [compute_sha256(Path(__file__).parents[1] / path) for path in CODE],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _is_intact(path: Path) -> bool:
    """Whether a file of pairs and that of their latents are as they were written; others are encoded again."""
    with suppress(DataError):
        if path.name == f"{_hash_content(read_npy(path), read_npy(_posteriors_path(path)))}{PAIRS}":
            return True
    click.echo(f"{path}: these latents are damaged, and are encoded again", err=True)
    return False


def _hash_content(pairs: np.ndarray, posteriors: np.ndarray) -> str:
    return hashlib.sha256(pairs.tobytes() + np.ascontiguousarray(posteriors).data).hexdigest()[:16]


def _posteriors_path(pairs: Path) -> Path:
    return pairs.with_name(pairs.name.removesuffix(PAIRS) + ".npy")


def _code(view: View) -> int:
    """Number of a view, which is the same in every schedule."""
    return ((view.rotation or 0) * 2 + view.flip) * 4 + view.quarters


def _find_rows(folder: Path, names: list[str], schedule: BatchSchedule) -> np.ndarray:
    """The row of each pair in the concatenated files, int64 (views, images), -1 for missing ones."""
    views = {_code(view): index for index, view in enumerate(schedule.views)}
    rows, start = np.full((len(views), schedule.num_images), -1), 0
    for name in names:
        codes, images = read_npy(folder / name).T
        # another training may have used more views
        known = np.isin(codes, list(views))
        indices = np.array([views[code] for code in codes[known].tolist()], np.int64)
        rows[indices, images[known]] = np.arange(start, start + len(codes))[known]
        start += len(codes)
    return rows


def _encode_missing(
    vae: AutoencoderKL,
    device: str,
    precision: str,
    prepared: Prepared,
    schedule: BatchSchedule,
    pairs: np.ndarray,
    folder: Path,
) -> list[str]:
    """Encodes pairs of view and image, int64 (n, 2), sorted by view; returns the names of the files of pairs."""
    per_file = max(MAX_IMAGES, FILE_BYTES // (4 * math.prod(schedule.latent_shape)))
    files = [pairs[start : start + per_file] for start in range(0, len(pairs), per_file)]
    size = MAX_IMAGES if device != "cpu" else min(MAX_IMAGES, max(1, MAX_CPU_PIXELS // prepared.image_size**2))
    codes = np.array([_code(view) for view in schedule.views])
    written: list[str] = []
    with progress_bar(None, "encoding images", len(pairs)) as bar:
        while len(written) < len(files):
            wanted = files[len(written)]
            try:
                with catch_out_of_memory("encoding images does not fit: use a smaller dataset.image_size"):
                    posteriors = _encode(vae, device, precision, prepared, schedule, wanted, size)
            except OutOfMemory:
                if size == 1:
                    raise
                size //= 2
                continue
            coded = np.stack([codes[wanted[:, 0]], wanted[:, 1]], 1)
            name = f"{_hash_content(coded, posteriors)}{PAIRS}"
            for path, array in ((_posteriors_path(folder / name), posteriors), (folder / name, coded)):
                with atomic_write(path) as unfinished:
                    write_npy_chunks(unfinished, array.shape, array.dtype, [array])
            written.append(name)
            bar.update(len(wanted))
    return written


def _encode(
    vae: AutoencoderKL, device: str, precision: str, prepared: Prepared, schedule: BatchSchedule, pairs: np.ndarray, size: int
) -> np.ndarray:
    """Posteriors of pairs that are sorted by view, `size` of one view at once, float16 (n, 2, C, h, w)."""
    images, encoded = prepared.images("train"), []
    views = np.split(pairs, np.flatnonzero(np.diff(pairs[:, 0])) + 1)
    chunks = [view[start : start + size] for view in views for start in range(0, len(view), size)]

    def read(chunk: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        # padded by the last image, because kernels round by the size of the batch, which depends on what is missing
        padded = pad_batch_size(len(chunk), device) if device == "cpu" else size
        rows = chunk[np.minimum(np.arange(padded), len(chunk) - 1), 1]
        return rows, as_pixels(images[rows], device)

    with closing(prefetch(read, chunks)) as batches:
        for chunk, (rows, pixels) in zip(chunks, batches, strict=True):
            view = chunk[0, 0]
            batch = as_batch(pixels, device, prepared.image_size)
            batch = _transform(batch, schedule.views[view], schedule.angles(view)[rows])
            encoded.append(_encode_pixels(vae, batch, precision)[: len(chunk)])
    return np.concatenate(encoded)


def _encode_pixels(vae: AutoencoderKL, pixels: torch.Tensor, precision: str) -> np.ndarray:
    """Mean and standard deviation of the posteriors of NCHW pixels in [0, 1], float16 (n, 2, C, h, w)."""
    import torch

    with torch.inference_mode(), autocast(pixels.device.type, precision):
        posterior = vae.encode(pixels * 2 - 1).latent_dist
        return torch.stack([posterior.mean, posterior.std], 1).half().cpu().numpy()


def _labels(prepared: Prepared) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.asarray(prepared.labels_of("train"), np.int64))


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
