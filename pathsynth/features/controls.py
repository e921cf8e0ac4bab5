"""Manipulated real images with a known answer: copies that moved, and images that keep colours but lose structure."""

from __future__ import annotations

import numpy as np

from pathsynth.data.images import VIEWS, rotate_and_mirror
from pathsynth.features.robustness import STAINS, scale_stain

# Largest shift as a share of the side, and largest factor on the concentration of a stain.
MAX_SHIFT, MAX_FACTOR = 1 / 16, 1.25


def move_and_restain(images: np.ndarray, seed: int) -> np.ndarray:
    """Shifts, rotates or mirrors, and restains each image at random, so that its pixels differ from those of the original.

    Shifts are up to 1/16 of the side in both directions, mirrored at the edges; one stain is multiplied by a factor between
    0.8 and 1.25. In grey images all absorbance is multiplied.

    Args:
        images: uint8 (N, s, s, 3).
        seed: seed of all random numbers.

    Returns:
        uint8 (N, s, s, 3).
    """
    rng, moved, limit = np.random.default_rng(seed), np.empty_like(images), round(images.shape[1] * MAX_SHIFT)
    for i, image in enumerate(images):
        top, left = rng.integers(0, 2 * limit + 1, 2)
        view, stain = int(rng.integers(VIEWS)), str(rng.choice(list(STAINS)))
        factor = MAX_FACTOR ** rng.uniform(-1.0, 1.0)
        padded = np.pad(image, ((limit, limit), (limit, limit), (0, 0)), "reflect")
        shifted = padded[top : top + len(image), left : left + len(image)][None]
        grey = (image == image[..., :1]).all()
        restained = np.rint(255 * (shifted / 255) ** factor) if grey else scale_stain(shifted, stain, factor)
        moved[i] = rotate_and_mirror(restained, view)[0]
    return moved


def shuffle_patches(images: np.ndarray, grid: int, seed: int) -> np.ndarray:
    """Cuts each image into `grid` x `grid` squares and shuffles them, each image in its own order.

    Args:
        images: uint8 (N, s, s, 3); if s is no multiple of `grid`, the last s % grid rows and columns stay.
        grid: squares per side, 1 to s.
        seed: seed of the orders.

    Returns:
        uint8 (N, s, s, 3).
    """
    rng, shuffled, side = np.random.default_rng(seed), np.array(images), images.shape[1] // grid
    for image in shuffled:
        inside = image[: grid * side, : grid * side]
        squares = inside.reshape(grid, side, grid, side, 3).swapaxes(1, 2).reshape(grid * grid, side, side, 3)
        squares = rng.permutation(squares).reshape(grid, grid, side, side, 3).swapaxes(1, 2)
        inside[:] = squares.reshape(inside.shape)
    return shuffled


def shuffle_pixels(images: np.ndarray, seed: int) -> np.ndarray:
    """Shuffles the pixels of each image uint8 (N, s, s, 3) in its own order."""
    return shuffle_patches(images, images.shape[1], seed)


def randomize_phases(images: np.ndarray, seed: int) -> np.ndarray:
    """Adds random phases to the Fourier transform of each image, the same for its three channels.

    Mean colour, amplitude spectrum and correlations between channels stay, up to clipping: the random phase noise of Galerne,
    Gousseau and Morel (IEEE Transactions on Image Processing 2011).

    Args:
        images: uint8 (N, s, s, 3).
        seed: seed of the phases.

    Returns:
        uint8 (N, s, s, 3).
    """
    rng, noisy, shape = np.random.default_rng(seed), np.empty_like(images), images.shape[1:3]
    for i, image in enumerate(images):
        # of real noise, so that the result is real; the mean has no phase
        phases = np.fft.rfft2(rng.normal(size=shape))
        phases /= np.abs(phases)
        phases[0, 0] = 1.0
        pixels = np.fft.irfft2(np.fft.rfft2(image, axes=(0, 1)) * phases[..., None], s=shape, axes=(0, 1))
        noisy[i] = np.rint(pixels).clip(0, 255)
    return noisy
