"""The manifest of a folder of synthetic images: a CSV with one row per image, from which each can be drawn again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pathsynth.core.errors import DataError, one_line
from pathsynth.core.io import FORMULA, atomic_write, reason
from pathsynth.synthesis.records import Record, as_record

NAME = "manifest.csv"
MOST_IMAGES = 10_000
MOST_BYTES = 100_000_000
TEXTS = ("prompt", "negative_prompt")
NUMBERS = ("seed", "attempt", "confidence", "num_inference_steps", "guidance_scale", "image_size", "channels")


def write_manifest(path: Path, records: Sequence[Record]) -> None:
    """Writes one row per record.

    Raises:
        DataError: the file cannot be written.
    """
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        # all texts in quotes: without, the csv module writes a lone carriage return that it does not read
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(Record.model_fields)
        writer.writerows([_cell(value) for value in dict(record).values()] for record in records)


def _cell(value: object) -> object:
    """A value as it stands in the file: a text with which a spreadsheet would calculate gets an apostrophe before it."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith((*FORMULA, "'")) else value


def read_manifest(path: Path) -> list[Record]:
    """The records of a manifest, in its order.

    Raises:
        DataError: the file is missing, no CSV, empty, names a file twice, or has a value that is not allowed, with its row.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(path, f"has more than {MOST_BYTES // 10**6} MB, which is no manifest")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except OSError as error:
        raise DataError(path, f"could not be read: {reason(error)}") from error
    except (ValueError, csv.Error) as error:
        raise DataError(path, f"is no CSV in UTF-8: {one_line(error)}") from error
    if not 0 < len(rows) <= MOST_IMAGES:
        raise DataError(path, f"has {len(rows)} rows; allowed: 1 to {MOST_IMAGES}")
    records = [_record(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    names = [record.file for record in records]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(path, f"names {twice} twice")
    return records


def _record(row: dict[str | None, str | None], where: str) -> Record:
    if None in row or None in row.values():
        raise DataError(where, "has not as many cells as the first row")
    # an empty cell is a text that is empty, or nothing where there may be nothing
    return as_record({key: _value(key, text) for key, text in row.items() if text or key in TEXTS}, where)


def _value(key: str | None, text: str | None) -> object:
    """The value of a cell: a number in a column of numbers; a text without the apostrophe that kept it from calculating."""
    assert text is not None
    if key in NUMBERS:
        for kind in (int, float):
            with suppress(ValueError):
                return kind(text)
    return text.removeprefix("'")
