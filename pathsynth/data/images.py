"""Conversions between uint8 images and torch batches, resizing, and the 8 orientations of an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

VIEWS = 8


def as_pixels(images: np.ndarray, device: str) -> torch.Tensor:
    """Converts uint8 images (N, H, W, 3) to a tensor in CPU memory, page-locked if they go to a GPU.

    The memory is shared with `images` where possible.
    """
    import torch

    # torch can share neither the read-only memory map of prepared images nor mirrored views
    shareable = images.flags.writeable and min(images.strides) >= 0
    pixels = torch.from_numpy(images if shareable else np.array(images))
    return pixels if device == "cpu" else pixels.pin_memory()


def as_batch(images: np.ndarray | torch.Tensor, device: str, size: int) -> torch.Tensor:
    """Converts uint8 (N, H, W, 3) to NCHW float32 in [0, 1], resized to `size` x `size` with antialiasing.

    Args:
        images: an array, or a tensor from `as_pixels`, whose copy to a GPU does not wait for the GPU's current work.
        device: torch device.
        size: side in pixels.
    """
    import torch
    import torch.nn.functional as F

    pixels = as_pixels(images, "cpu") if isinstance(images, np.ndarray) else images
    batch = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
    if batch.shape[-1] != size:
        batch = F.interpolate(batch, (size, size), mode="bilinear", antialias=True)
    return batch.contiguous(memory_format=torch.channels_last)


def as_images(batch: torch.Tensor) -> np.ndarray:
    """Converts NCHW float in [0, 1] to uint8 (N, H, W, C), rounding."""
    import torch

    return (batch.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 images (N, H, H) or (N, H, H, 3) with PIL's bicubic filter; a no-op for images of that size."""
    from PIL import Image

    if images.shape[1] == size:
        return images
    resized = np.empty((len(images), size, size, *images.shape[3:]), np.uint8)
    for i, image in enumerate(images):
        resized[i] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    return resized


def rotate_and_mirror(images: np.ndarray, view: int) -> np.ndarray:
    """Rotates images (N, s, s, ...) by `view` % 4 right angles, and mirrors them from view 4 on: all 8 symmetries."""
    images = np.rot90(images, view % 4, axes=(1, 2))
    return images[:, :, ::-1] if view >= VIEWS // 2 else images


def rotate_and_mirror_batch(pixels: torch.Tensor, views: int) -> Iterator[torch.Tensor]:
    """Yields the first `views` views of square NCHW images, in the order of `rotate_and_mirror`; the first is `pixels`."""
    for view in range(views):
        rotated = pixels.rot90(view % 4, (2, 3)) if view % 4 else pixels
        yield rotated.flip(3) if view >= VIEWS // 2 else rotated
