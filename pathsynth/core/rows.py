"""Many rows of numbers, such as the features of images, that need not be in memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib import format as npy

from pathsynth.core.errors import DataError
from pathsynth.core.io import DAMAGE, HEADER_READERS, reason

# Rows that lie apart by no more bytes are read together: what is between them costs less than one more access.
GAP = 2**15
# Most bytes that are read together with what is between.
SPAN = 2**22


class Rows(Protocol):
    """An array (N, ...) of which some rows at a time are looked at: a numpy array, or one on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    @property
    def dtype(self) -> np.dtype:
        """Of each number."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice | np.ndarray, /) -> np.ndarray:
        """Rows from start to stop, or of sorted indices (n,)."""


class RowFile:
    """The array of a .npy file, of which only the rows that are asked for are in memory.

    numpy's memory maps would do, but the pages that they have read count as the process's memory. The file is opened once, and
    closed when the object goes.

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
                self._descriptor = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._descriptor)
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
        picked = np.empty((len(indices), *self.shape[1:]), self.dtype)
        row = max(1, self._row)
        for here in _spans(indices, near=GAP // row, most=max(1, SPAN // row)):
            first, last = int(indices[here.start]), int(indices[here.stop - 1])
            picked[here] = self._read(first, last + 1 - first)[indices[here] - first]
        return picked

    def _read(self, start: int, count: int) -> np.ndarray:
        rows = np.empty((count, *self.shape[1:]), self.dtype)
        room, done = rows.reshape(-1).view(np.uint8).data, 0
        try:
            # one access reads 2 GB at most
            while done < len(room):
                read = os.preadv(self._descriptor, [room[done:]], self._start + start * self._row + done)
                if read == 0:
                    raise DataError(self.path, f"ends before row {start + count}")
                done += read
        except OSError as error:
            raise DataError(self.path, f"could not be read: {reason(error)}") from error
        return rows


def _spans(indices: np.ndarray, near: int, most: int) -> Iterator[slice]:
    """Yields which indices are read together: none further than `near` rows after the one before, `most` rows in all."""
    steps = np.diff(indices)
    breaks = np.flatnonzero((steps < 0) | (steps > near + 1)) + 1
    start = 0
    for stop in [*breaks.tolist(), len(indices)]:
        while start < stop:
            end = start + int(np.searchsorted(indices[start:stop], indices[start] + most))
            yield slice(start, end)
            start = end


class _Chosen:
    """Some rows of others, in an order of their own."""

    def __init__(self, rows: Rows, indices: np.ndarray):
        self._rows, self.indices = rows, indices
        self.shape, self.dtype = (len(indices), *rows.shape[1:]), rows.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: slice | np.ndarray, /) -> np.ndarray:
        return self._rows[self.indices[key]]


def select_rows(rows: Rows, indices: np.ndarray) -> Rows:
    """The rows of these sorted indices (n,), read when they are asked for."""
    return _Chosen(rows, np.asarray(indices, np.int64))


def blocks(rows: Rows, size: int = 2048) -> Iterator[np.ndarray]:
    """Yields `size` rows at a time, in order."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
