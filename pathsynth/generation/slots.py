"""Slots, one per requested image, and the attempts at filling them, recorded on disk batch by batch.

Images never accumulate in memory, and an interrupted run resumes after the last recorded batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.errors import DataError
from pathsynth.core.io import atomic_write, read_npy, write_npy_chunks
from pathsynth.core.seeds import Stream, mix_seed
from pathsynth.data.generated import ATTEMPT_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

# The predicted class of an attempt that no gate has checked.
UNCHECKED = -1
RECORD = np.dtype([("tissue", "i8"), ("slot", "i8"), ("attempt", "i8"), ("predicted", "i8"), ("confidence", "f8")])


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a slot of a tissue; all three are counted from 0."""

    tissue: int
    slot: int
    attempt: int

    def seed(self, seed: int) -> int:
        """Returns the 63-bit seed of the attempt's noise, given the global seed."""
        return mix_seed(Stream.IMAGES, seed, self.tissue, self.slot, self.attempt)


class Slots:
    """The first and the accepted image of every slot, and a record of all attempts.

    A batch is two files: its images, then its records, whose presence means that the batch is complete.

    Args:
        checkpoint: its folder holds the batches; batches of an interrupted run are reused.
        tissues: number of tissues.
        per_tissue: slots per tissue.
        size: side length of the images in pixels.
        seed: global seed, from which every attempt derives its own.
    """

    def __init__(self, checkpoint: Checkpoint, tissues: int, per_tissue: int, size: int, seed: int):
        if checkpoint.folder is None:
            raise ValueError("slots need a checkpoint folder")
        self.tissues, self.per_tissue, self.size, self.seed = tissues, per_tissue, size, seed
        self._checkpoint, self._folder = checkpoint, checkpoint.folder / "batches"
        self._batches = next(number for number in count() if not self._is_complete(number)) if checkpoint.writes else 0

    def recorded(self) -> dict[Attempt, int]:
        """Returns the predicted tissue of every recorded attempt; empty in a process that does not write."""
        records = self._records()
        if len(records):
            self._checkpoint.log(f"generation resumes after {len(records)} attempts")
        attempts = zip(*(records[name].tolist() for name in ("tissue", "slot", "attempt")), strict=True)
        return dict(zip((Attempt(*each) for each in attempts), records["predicted"].tolist(), strict=True))

    def add(self, attempts: Sequence[Attempt], images: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> None:
        """Records a batch.

        Args:
            attempts: n attempts.
            images: uint8 (n, size, size, 3).
            predicted: the gate's class of each image, integers (n,), or UNCHECKED.
            confidence: the probability of that class, float (n,).

        Raises:
            DataError: if a file cannot be written.
        """
        if not self._checkpoint.writes:
            return
        records = np.array(
            [
                (each.tissue, each.slot, each.attempt, label, round(probability, 4))
                for each, label, probability in zip(attempts, predicted.tolist(), confidence.tolist(), strict=True)
            ],
            RECORD,
        )
        for part, array in (("images", images[_has_image(records)]), ("records", records)):
            with atomic_write(self._path(self._batches, part)) as path:
                write_npy_chunks(path, array.shape, array.dtype, [array])
        self._batches += 1
        if self._checkpoint.should_save():
            self._checkpoint.keep_time()

    def raw(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first image of every slot, uint8 (N, size, size, 3), and its tissue, uint8 (N,), by tissue and slot."""
        records = self._records()
        return self._collect("raw", records[records["attempt"] == 0])

    def accepted(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the accepted image of every filled slot in the same form."""
        records = self._records()
        return self._collect("accepted", records[records["predicted"] == records["tissue"]])

    def table(self, slugs: Sequence[str]) -> pd.DataFrame:
        """Returns one row per attempt, by tissue, slot and attempt, with the columns `ATTEMPT_COLUMNS`."""
        import pandas as pd

        records = self._records()
        tissue, slot, attempt, predicted = (records[name].to_numpy() for name in ("tissue", "slot", "attempt", "predicted"))
        attempts = zip(tissue.tolist(), slot.tolist(), attempt.tolist(), strict=True)
        seeds = np.fromiter((Attempt(*each).seed(self.seed) for each in attempts), np.int64, len(records))
        # the index UNCHECKED, -1, selects the None at the end
        names = np.array([*slugs, None], dtype=object)
        accepted = (predicted == tissue).astype(np.int64)
        values = (names[tissue], slot, attempt, seeds, names[predicted], records["confidence"].to_numpy(), accepted)
        return pd.DataFrame(dict(zip(ATTEMPT_COLUMNS, values, strict=True)))

    def _path(self, number: int, part: str) -> Path:
        return self._folder / f"{number:06d}_{part}.npy"

    def _is_complete(self, number: int) -> bool:
        """Returns whether a batch is readable; a damaged one is generated again."""
        try:
            records, images = read_npy(self._path(number, "records")), read_npy(self._path(number, "images"))
        except DataError:
            return False
        return records.dtype == RECORD and images.shape == (_has_image(records).sum(), self.size, self.size, 3)

    def _records(self) -> pd.DataFrame:
        """All records by tissue, slot and attempt, each with its batch and the row of its image there."""
        import pandas as pd

        tables = [pd.DataFrame(np.empty(0, RECORD)).assign(batch=0, row=0)]
        for number in range(self._batches):
            records = np.array(read_npy(self._path(number, "records")))
            tables.append(pd.DataFrame(records).assign(batch=number, row=np.cumsum(_has_image(records)) - 1))
        return pd.concat(tables).sort_values(["tissue", "slot", "attempt"], ignore_index=True)

    def _collect(self, name: str, records: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Copies the images of the records into one file; returns its memory map and the tissues."""
        shape, path = (len(records), self.size, self.size, 3), self._folder / f"{name}.npy"
        with atomic_write(path) as part:
            write_npy_chunks(part, shape, np.dtype(np.uint8), self._read_images(records))
        return read_npy(path), records["tissue"].to_numpy(np.uint8)

    def _read_images(self, records: pd.DataFrame) -> Iterator[np.ndarray]:
        """Yields uint8 (n, size, size, 3), one array per run of records from the same batch."""
        for batch, run in groupby(zip(records["batch"], records["row"], strict=True), key=itemgetter(0)):
            yield read_npy(self._path(batch, "images"))[[row for _, row in run]]


def _has_image(records: np.ndarray) -> np.ndarray:
    """Returns which attempts have a recorded image; rejected retries belong to no set, so theirs are dropped."""
    return (records["attempt"] == 0) | (records["predicted"] == records["tissue"])


def first_attempts(tissues: int, images_per_tissue: int) -> list[Attempt]:
    """Returns the first attempt at every slot, by tissue and slot."""
    return [Attempt(tissue, slot, 0) for tissue in range(tissues) for slot in range(images_per_tissue)]


def in_batches(attempts: list[Attempt], size: int) -> list[list[Attempt]]:
    """Splits attempts, in order, into batches of `size`."""
    return [attempts[start : start + size] for start in range(0, len(attempts), size)]
