"""Subsamples of labelled images, drawn by seed within each tissue and in given proportions."""

from __future__ import annotations

import numpy as np

from pathsynth.core.seeds import Stream, mix_seed


def subsample_per_class(labels: np.ndarray, counts: np.ndarray, *seed: int) -> np.ndarray:
    """Draws images of each tissue without replacement.

    Does not simply take the first ones, because an archive may be sorted by patient.

    Args:
        labels: tissues of N images, integers (N,).
        counts: how many to draw of each tissue, integers (tissues,); all are taken where there are fewer.
        seed: numbers >= 0.

    Returns:
        Sorted indices, int64 (n,).
    """
    selected = [np.zeros(0, np.int64)]
    for tissue, count in enumerate(counts):
        indices = np.flatnonzero(labels == tissue)
        if len(indices) > count:
            indices = np.random.default_rng(mix_seed(Stream.DRAWN, *seed, tissue)).choice(indices, count, replace=False)
        selected.append(indices)
    return np.sort(np.concatenate(selected))


def proportional_counts(available: np.ndarray, wanted: np.ndarray, max_factor: float = np.inf) -> np.ndarray:
    """Computes the largest counts per tissue that are available and in the proportions of `wanted`.

    Scores of sets with different tissue proportions would differ even if their images looked the same.

    Args:
        available: number of images of each tissue, integers (tissues,).
        wanted: counts whose proportions are kept, integers (tissues,).
        max_factor: largest factor on `wanted`.

    Returns:
        Counts int64 (tissues,), rounded down, but at least 1 for a tissue that is both wanted and available.
    """
    requested = wanted > 0
    if not requested.any():
        return np.zeros(len(wanted), np.int64)
    factor = min(max_factor, float((available[requested] / wanted[requested]).min()))
    counts = np.floor(factor * wanted + 1e-9).astype(np.int64)
    return np.where(requested, np.maximum(counts, np.minimum(available, 1)), 0)
