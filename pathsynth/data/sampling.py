"""Which images stand for a set: drawn by seed within each tissue, and in the proportions of another set."""

from __future__ import annotations

import numpy as np

from pathsynth.core.seeds import Stream, mix_seed


def subsample_per_class(labels: np.ndarray, counts: np.ndarray, *seed: int) -> np.ndarray:
    """Sorted indices of images drawn without replacement, int64 (n,).

    Never the first ones: an archive may be sorted by patient.

    Args:
        labels: tissues of N images, integers (N,).
        counts: how many of each tissue, integers (tissues,); all where there are fewer.
        seed: numbers >= 0.
    """
    found = [np.zeros(0, np.int64)]
    for tissue, most in enumerate(counts):
        there = np.flatnonzero(labels == tissue)
        if len(there) > most:
            there = np.random.default_rng(mix_seed(Stream.DRAWN, *seed, tissue)).choice(there, most, replace=False)
        found.append(there)
    return np.sort(np.concatenate(found))


def in_proportion(available: np.ndarray, wanted: np.ndarray, most: float = np.inf) -> np.ndarray:
    """The largest counts per tissue that are there and in the proportions of others.

    Distances between sets whose tissues are mixed otherwise would be distances between the mixtures.

    Args:
        available: how many images there are of each tissue, integers (tissues,).
        wanted: counts whose proportions are kept, integers (tissues,).
        most: largest factor on `wanted`.

    Returns:
        Counts int64 (tissues,), rounded down; 0 where nothing is wanted, and at least 1 where there is something of what is.
    """
    asked = wanted > 0
    if not asked.any():
        return np.zeros(len(wanted), np.int64)
    factor = min(most, float((available[asked] / wanted[asked]).min()))
    counts = np.floor(factor * wanted + 1e-9).astype(np.int64)
    return np.where(asked, np.maximum(counts, np.minimum(available, 1)), 0)
