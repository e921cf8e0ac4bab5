"""Rows of an array that may be larger than memory, such as the features of images on disk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class RowSelection:
    """A selection of rows of an array, read lazily when indexed.

    Attributes:
        shape: (n, ...).
        dtype: of the array.
    """

    def __init__(self, rows: Rows, indices: np.ndarray):
        self._rows = rows
        self.indices = np.asarray(indices, np.int64)
        self.shape: tuple[int, ...] = (len(self.indices), *rows.shape[1:])
        self.dtype: np.dtype = rows.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: slice | np.ndarray, /) -> np.ndarray:
        return self._rows[self.indices[key]]


# An array (N, ...) that is indexed by slices and by index arrays: in memory, a memory map, or a selection of either.
Rows = np.ndarray | RowSelection


def select_rows(rows: Rows, indices: np.ndarray) -> RowSelection:
    """Selects rows by their indices (n,) without reading them."""
    return RowSelection(rows, indices)


def iter_blocks(rows: Rows, size: int = 2048) -> Iterator[np.ndarray]:
    """Yields the rows in blocks of at most `size`, in order."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
