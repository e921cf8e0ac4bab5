"""Pools of images that the trials of a page are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.core.rows import Rows
from pathsynth.synthesis.records import compute_pixels_sha256


@dataclass(frozen=True)
class Pool:
    """Labelled images of one origin.

    Attributes:
        name: named in errors, such as a path.
        images: uint8 (N, H, H, 3).
        labels: integers (N,).
        describe: gives the provenance of a row for the key; generated images have at least a "slot".
    """

    name: str
    images: Rows
    labels: np.ndarray
    describe: Callable[[int], Mapping[str, Any]]

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[1]

    def image(self, row: int) -> np.ndarray:
        """Reads one image, uint8 (H, H, 3)."""
        return np.asarray(self.images[row : row + 1][0])


@dataclass(frozen=True)
class Classes:
    """The classes of a data set that readers choose from.

    Attributes:
        slugs: in the order of the labels.
        names: the same in words.
        channels: 3, or 1 for grey images.
        stand_in: whether the images only stand in for medical ones, as phantoms do.
    """

    slugs: tuple[str, ...]
    names: tuple[str, ...]
    channels: int = 3
    stand_in: bool = False

    def find(self, wanted: Sequence[str]) -> list[int]:
        """Returns the indices of the wanted slugs, or of all classes if none is named.

        Raises:
            DataError: for a slug that is not a class.
        """
        for slug in wanted:
            if slug not in self.slugs:
                raise DataError("--tissue", f"{slug} is not a class; allowed: {', '.join(self.slugs)}")
        return [index for index, slug in enumerate(self.slugs) if slug in wanted or not wanted]


def choose_size(pools: Sequence[Pool], size: int | None, native: int | None = None) -> int:
    """Chooses the side in pixels at which all images are shown; no image is enlarged, because that would show.

    Args:
        pools: the images.
        size: the wanted side; None takes that of the images.
        native: side of the archive that real images were enlarged from, if known; a smaller one replaces the default.

    Raises:
        DataError: the pools differ in size and none is wanted, or the wanted one is larger than an image.
    """
    smallest = min(pools, key=lambda pool: pool.side)
    sizes = ", ".join(f"{pool.name} {pool.side} px" for pool in pools)
    if size is None:
        if len({pool.side for pool in pools}) > 1:
            raise DataError("images", f"differ in size ({sizes}); pass --size {smallest.side} to shrink all to the smallest")
        return min(smallest.side, native or smallest.side)
    if size > smallest.side:
        raise DataError("--size", f"{size} px would enlarge images ({sizes}), which shows; the limit is {smallest.side}")
    return size


def draw_rows(pool: Pool, label: int, count: int, rng: np.random.Generator, used: set[str]) -> list[int]:
    """Draws rows of one class whose images differ from each other and from those in `used`, which they are added to.

    Returns:
        At most `count` rows.
    """
    rows: list[int] = []
    for row in rng.permutation(np.flatnonzero(pool.labels == label)).tolist():
        if len(rows) == count:
            break
        if (digest := compute_pixels_sha256(pool.image(row))) not in used:
            used.add(digest)
            rows.append(row)
    return rows
