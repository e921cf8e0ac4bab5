"""Slots, one for every wanted image, and the attempts at them: kept on disk while they are filled.

So no image stays in memory, and a run that was killed goes on after the last batch that it had recorded.
"""

from __future__ import annotations

import json
import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth.core.checkpoint import Saved
from pathsynth.core.errors import DataError
from pathsynth.core.io import NpyWriter, reason
from pathsynth.core.rows import RowFile, Rows, select_rows
from pathsynth.core.seeds import Stream, mix_seed
from pathsynth.data.generated import ATTEMPT_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

# What stands for the gate's answer where no gate was asked.
NOT_ASKED = -1


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one slot of one tissue, all counted from 0."""

    tissue: int
    slot: int
    attempt: int

    def seed(self, seed: int) -> int:
        """The seed of this try's noise, 63 bits."""
        return mix_seed(Stream.IMAGES, seed, self.tissue, self.slot, self.attempt)


class Slots:
    """The first and the accepted image of every slot, and a record of all attempts.

    Args:
        saved: in whose folder they are kept; what an interrupted run has left there is taken up.
        tissues: number of tissues.
        per_tissue: slots of each.
        size: side of the images in pixels.
        seed: global seed, of which each attempt has its own.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, saved: Saved, tissues: int, per_tissue: int, size: int, seed: int):
        if saved.folder is None:
            raise ValueError("slots are kept in a folder")
        self.tissues, self.per_tissue, self.size, self.seed = tissues, per_tissue, size, seed
        self._saved, self._folder = saved, saved.folder / "slots"
        self._record, self._row = self._folder / "attempts.jsonl", size * size * 3
        if not saved.writes:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            whole = self._whole_lines()
            with open(self._record, "ab") as record:
                record.truncate(whole)
            for name in ("raw", "accepted"):
                self._make_room(name)
        except OSError as error:
            raise DataError(self._folder, f"could not be written: {reason(error)}") from error

    def recorded(self) -> dict[Attempt, int]:
        """The attempts whose batches were recorded, and the tissue that the gate saw in each; nothing where none is kept."""
        found = {Attempt(*row[:3]): row[3] for row in self._rows()} if self._saved.writes else {}
        if found:
            self._saved.log(f"the generation goes on after {len(found)} attempts")
        return found

    def add(self, attempts: Sequence[Attempt], images: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> None:
        """Keeps a batch; it counts once it is whole.

        Args:
            attempts: n tries.
            images: uint8 (n, size, size, 3).
            predicted: tissue that the gate saw in each, integers (n,), or NOT_ASKED.
            confidence: its probability, float (n,).

        Raises:
            DataError: the disk is full.
        """
        if not self._saved.writes:
            return
        rows = []
        for attempt, image, seen, sure in zip(attempts, images, predicted.tolist(), confidence.tolist(), strict=True):
            content = np.ascontiguousarray(image).tobytes()
            if attempt.attempt == 0:
                self._put("raw", attempt, content)
            if seen == attempt.tissue:
                self._put("accepted", attempt, content)
            # a rejected retry is looked at no more
            kept = zlib.crc32(content) if attempt.attempt == 0 or seen == attempt.tissue else None
            rows.append([attempt.tissue, attempt.slot, attempt.attempt, seen, round(sure, 4), kept])
        try:
            with open(self._record, "ab") as record:
                record.write(json.dumps(rows).encode() + b"\n")
        except OSError as error:
            raise DataError(self._record, f"could not be written: {reason(error)}") from error
        if self._saved.should_save():
            self._saved.keep_time()

    def raw(self) -> tuple[Rows, np.ndarray]:
        """The first image of every slot, uint8 (N, size, size, 3), and its tissue, uint8 (N,), by tissue, then slot."""
        return self._images("raw", range(self.tissues * self.per_tissue))

    def accepted(self) -> tuple[Rows, np.ndarray]:
        """The accepted image of every filled slot, in the same form."""
        return self._images("accepted", sorted(self._number(*row[:2]) for row in self._rows() if row[3] == row[0]))

    def table(self, slugs: Sequence[str]) -> pd.DataFrame:
        """One row per attempt of which a gate was asked, by tissue, slot and attempt, with the columns of `ATTEMPT_COLUMNS`."""
        import pandas as pd

        # a few bytes for a number, where a list of Python's would take hundreds for an attempt
        columns = [array(kind) for kind in "qqqqd"]
        for row in self._rows():
            for column, value in zip(columns, row, strict=False):
                column.append(value)
        tissue, slot, attempt, seen, sure = (np.asarray(column) for column in columns)
        if NOT_ASKED in seen:
            raise ValueError("no gate was asked, so there is nothing to tell of its answers")
        order = np.lexsort((attempt, slot, tissue))
        tissue, slot, attempt, seen = tissue[order], slot[order], attempt[order], seen[order]
        tries = zip(tissue.tolist(), slot.tolist(), attempt.tolist(), strict=True)
        seeds = np.fromiter((Attempt(*each).seed(self.seed) for each in tries), np.int64, len(order))
        names = np.array(list(slugs), dtype=object)
        values = (names[tissue], slot, attempt, seeds, names[seen], sure[order], (seen == tissue).astype(np.int64))
        return pd.DataFrame(dict(zip(ATTEMPT_COLUMNS, values, strict=True)))

    def _number(self, tissue: int, slot: int) -> int:
        return tissue * self.per_tissue + slot

    def _images(self, name: str, numbers: Sequence[int]) -> tuple[Rows, np.ndarray]:
        kept = np.asarray(numbers, np.int64)
        return select_rows(RowFile(self._path(name)), kept), (kept // self.per_tissue).astype(np.uint8)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _make_room(self, name: str) -> None:
        """A file for all images that takes no room on disk before they are written."""
        path, shape = self._path(name), (self.tissues * self.per_tissue, self.size, self.size, 3)
        with suppress(DataError):
            if RowFile(path).shape == shape:
                return
        with NpyWriter(path, shape, np.dtype(np.uint8)) as file:
            file.leave_room()

    def _put(self, name: str, attempt: Attempt, content: bytes) -> None:
        path = self._path(name)
        try:
            with open(path, "r+b") as file:
                start = os.path.getsize(path) - self.tissues * self.per_tissue * self._row
                file.seek(start + self._number(attempt.tissue, attempt.slot) * self._row)
                file.write(content)
        except OSError as error:
            raise DataError(path, f"could not be written: {reason(error)}") from error

    def _rows(self) -> Iterator[list[Any]]:
        with open(self._record, "rb") as record:
            for line in record:
                yield from json.loads(line)

    def _whole_lines(self) -> int:
        """Bytes of the record up to the first batch that is not whole: its line, or an image of it."""
        whole = 0
        if not self._record.is_file() or not all(self._path(name).is_file() for name in ("raw", "accepted")):
            return whole
        with open(self._record, "rb") as record:
            for line in record:
                if not line.endswith(b"\n") or not self._is_whole(line):
                    break
                whole += len(line)
        return whole

    def _is_whole(self, line: bytes) -> bool:
        try:
            return all(self._holds(*row) for row in json.loads(line))
        except (ValueError, TypeError, DataError):
            return False

    def _holds(self, tissue: int, slot: int, attempt: int, seen: int, _: float, checksum: int | None) -> bool:
        names = [name for name, kept in (("raw", attempt == 0), ("accepted", seen == tissue)) if kept]
        number = self._number(tissue, slot)
        return all(zlib.crc32(RowFile(self._path(name))[number : number + 1].tobytes()) == checksum for name in names)


def first_attempts(tissues: int, images_per_tissue: int) -> list[Attempt]:
    """The first try at every slot, by tissue, then slot."""
    return [Attempt(tissue, slot, 0) for tissue in range(tissues) for slot in range(images_per_tissue)]


def in_batches(attempts: list[Attempt], size: int) -> list[list[Attempt]]:
    """The attempts in order, `size` at a time."""
    return [attempts[start : start + size] for start in range(0, len(attempts), size)]
