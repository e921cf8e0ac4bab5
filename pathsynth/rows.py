"""Many rows of numbers, such as the features of images, that need not be in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib import format as npy

from pathsynth.errors import DataError
from pathsynth.files import DAMAGE, HEADER_READERS, reason


class Rows(Protocol):
    """An array (N, ...) of which some rows at a time are looked at: a numpy array, or one on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice | np.ndarray, /) -> np.ndarray:
        """Rows from start to stop, or of sorted indices (n,)."""


class RowFile:
    """The array of a .npy file, of which only the rows that are asked for are in memory.

    numpy's memory maps would do, but the pages that they have read count as the process's memory.

    Attributes:
        shape: (N, ...).
        dtype: as numpy's.

    Raises:
        DataError: if the file is missing, is no .npy file in C order, or is shorter than it says.
    """

    def __init__(self, path: str | Path):
        self.path = path
        try:
            with open(path, "rb") as file:
                version = npy.read_magic(file)
                self.shape, fortran, self.dtype = HEADER_READERS[version](file)
                self._start = file.tell()
                held = file.seek(0, 2) - self._start
        except OSError as error:
            raise DataError(path, f"could not be read: {reason(error)}") from error
        except (*DAMAGE, KeyError) as error:
            raise DataError(path, "is not a .npy file") from error
        self._row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        if self.dtype.hasobject or (fortran and len(self.shape) > 1) or held != self._row * self.shape[0]:
            raise DataError(path, f"is not a whole array {self.dtype} {self.shape} in C order")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | np.ndarray, /) -> np.ndarray:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise ValueError("rows are read from start to stop, without steps")
            return self._read(start, max(0, stop - start))
        indices = np.asarray(key)
        # neighbours are read together, so that a run of rows is one access
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1) if len(indices) else []
        parts = [self._read(int(run[0]), len(run)) for run in runs]
        return np.concatenate(parts) if parts else self._read(0, 0)

    def _read(self, start: int, count: int) -> np.ndarray:
        with open(self.path, "rb") as file:
            file.seek(self._start + start * self._row)
            data = file.read(count * self._row)
        if len(data) != count * self._row:
            raise DataError(self.path, f"ends before row {start + count}")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


class _Chosen:
    """Some rows of others, in an order of their own."""

    def __init__(self, rows: Rows, indices: np.ndarray):
        self._rows, self._indices = rows, indices
        self.shape = (len(indices), *rows.shape[1:])

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, key: slice | np.ndarray, /) -> np.ndarray:
        return self._rows[self._indices[key]]


def chosen(rows: Rows, indices: np.ndarray) -> Rows:
    """The rows of these sorted indices (n,), read when they are asked for."""
    return _Chosen(rows, np.asarray(indices, np.int64))


def blocks(rows: Rows, size: int = 2048) -> Iterator[np.ndarray]:
    """Yields `size` rows at a time, in order."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
