"""Small sets of real and synthetic images for pages that readers see."""

from __future__ import annotations

import numpy as np

from pathsynth.data import labels
from pathsynth.readers.pool import Classes, Pool

PER_TISSUE, SIDE = 4, 16
TISSUES = len(labels.SLUGS)
CLASSES = Classes(labels.SLUGS, labels.PATHMNIST)


def make_pool(name: str, seed: int, per_tissue: int = PER_TISSUE, side: int = SIDE, tissues: int = TISSUES) -> Pool:
    """Noise, all different: `per_tissue` images of every tissue, sorted by tissue."""
    images = np.random.default_rng(seed).integers(0, 256, (tissues * per_tissue, side, side, 3), np.uint8)
    return pool_of(name, images, np.repeat(np.arange(tissues), per_tissue))


def pool_of(name: str, images: np.ndarray, tissues: np.ndarray) -> Pool:
    """A pool whose images have the slots 0, 1, ... within their tissue."""
    slots = [int((tissues[:row] == tissue).sum()) for row, tissue in enumerate(tissues)]
    return Pool(name, images, tissues, lambda row: {"slot": slots[row]})
