"""Division of images into train, val and test by share, with all images of a group, such as a patient, on one side.

Of each split all images are used, or as many of every class as the dataset section says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pathsynth.core.seeds import Stream, mix_seed
from pathsynth.data.archives import SPLITS
from pathsynth.data.sampling import subsample_per_class
from pathsynth.data.settings import StoredDataset

# Random divisions to try; tries times groups is limited by MAX_STEPS.
TRIES, MAX_STEPS = 50, 100_000


def divide_images(
    labels: np.ndarray, groups: np.ndarray, shares: Mapping[str, float], seed: int, slugs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Divides images at random into train and other splits by shares of every class.

    Groups stay together, so their shares are approximate: of several random divisions the closest one is returned. Images that
    are all in groups of one are divided exactly.

    Args:
        labels: classes of N images, integers (N,); every class occurs.
        groups: groups of the images, integers (N,) from 0 without gaps.
        shares: shares of the other splits by name, above 0; train gets the rest.
        seed: `seeds.data`.
        slugs: names of the classes.

    Returns:
        For "train" and each of `shares` sorted indices, int64 (n,), with at least one image of every class.

    Raises:
        ValueError: there are too few images or groups for that.
    """
    splits, grouped = ("train", *shares), len(labels) > groups.max() + 1
    counts = np.zeros((groups.max() + 1, len(slugs)), np.int64)
    np.add.at(counts, (groups, labels), 1)
    for slug, number in zip(slugs, (counts > 0).sum(axis=0), strict=True):
        if number < len(splits):
            unit = "group" if grouped else "image"
            found = f"only {number} {unit}" + ("s" if number > 1 else "")
            raise ValueError(f"{slug} has {found}, but {', '.join(splits)} need at least one each")
    tries = max(1, min(TRIES, MAX_STEPS // len(counts))) if grouped else 1
    generators = (np.random.default_rng(mix_seed(Stream.DIVISION, seed, attempt)) for attempt in range(tries))
    drawn = [_draw_division(counts / counts.sum(axis=0), list(shares.values()), rng) for rng in generators]
    # a division without an image of some class has an infinite deviation
    deviation, split_of = min(drawn, key=lambda division: division[0])
    if np.isinf(deviation):
        raise ValueError(f"has too few groups to give each of {', '.join(splits)} an image of every class")
    return {split: np.flatnonzero(split_of[groups] == number) for number, split in enumerate(splits)}


def select_per_tissue(dataset: StoredDataset, split: str, labels: np.ndarray, seed: int) -> np.ndarray | None:
    """Selects the number of images per tissue that the dataset section sets, without replacement.

    Args:
        dataset: the dataset section.
        split: "train", "val" or "test".
        labels: tissues of the N images of the split, integers (N,).
        seed: `seeds.data`.

    Returns:
        Sorted indices, int64 (n,), or None for all images.

    Raises:
        ValueError: a tissue has fewer images.
    """
    count = dataset.per_tissue(split)
    if count is None:
        return None
    available = np.bincount(labels, minlength=len(dataset.slugs))
    fewest = int(available.min())
    if fewest < count:
        problem = f"dataset.{split}_per_tissue is {count}, but {dataset.slugs[available.argmin()]} has {fewest} in {split}"
        raise ValueError(f"{problem}; allowed: at most {fewest}, or null for all images")
    counts = np.full(len(dataset.slugs), count)
    return subsample_per_class(labels, counts, mix_seed(Stream.SELECTION, seed, SPLITS.index(split)))


def _draw_division(parts: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Draws a split for every group: 0 for train, then those of `shares`.

    Each split takes groups in random order while they reduce its deviation, then the smallest group for each missing class.

    Args:
        parts: the part of the images of every class that a group has, float (groups, classes).
        shares: shares of the splits.
        rng: source of randomness.

    Returns:
        The squared deviation from the shares, infinite if a split lacks a class, and the splits, int64 (groups,).
    """
    split_of, present, deviation = np.zeros(len(parts), np.int64), parts > 0, 0.0
    for number, share in enumerate(shares, 1):
        # groups left of each class; how many of them the later splits and train need
        left, reserve = present[split_of == 0].sum(axis=0), 1 + len(shares) - number
        taken = np.zeros(parts.shape[1])
        for group in rng.permutation(np.flatnonzero(split_of == 0)):
            # negative: the group reduces the deviation; the margin breaks ties equally on all CPUs
            change = parts[group] @ (parts[group] + 2 * (taken - share))
            if change < -1e-12 and (left - present[group] >= reserve).all():
                split_of[group], taken, left = number, taken + parts[group], left - present[group]
        for label in np.argsort(left, kind="stable"):
            if taken[label] == 0:
                able = (split_of == 0) & present[:, label] & (left - present >= reserve).all(axis=1)
                if not able.any():
                    return np.inf, split_of
                group = np.where(able, ((taken + parts - share) ** 2).sum(axis=1), np.inf).argmin()
                split_of[group], taken, left = number, taken + parts[group], left - present[group]
        deviation += float(((taken - share) ** 2).sum())
    return deviation, split_of
