"""The manifest of a folder of synthetic images: a CSV with one row per image, from which each can be drawn again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pathsynth.errors import DataError, one_line
from pathsynth.files import reason, write_csv
from pathsynth.pictures import Record, as_record

NAME = "manifest.csv"
MOST_BYTES = 100_000_000
TEXTS = ("prompt", "negative_prompt")
NUMBERS = ("seed", "attempt", "confidence", "num_inference_steps", "guidance_scale", "image_size", "channels")


def write_manifest(path: Path, records: Sequence[Record]) -> None:
    """Writes one row per record.

    Raises:
        DataError: the file cannot be written.
    """
    import pandas as pd

    # `write_csv` puts an apostrophe before some texts, so those that have one of their own get another
    table = pd.DataFrame([dict(record) for record in records], columns=list(Record.model_fields), dtype=object)
    write_csv(path, table.map(lambda value: f"'{value}" if isinstance(value, str) and value.startswith("'") else value))


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
    if not rows:
        raise DataError(path, "has no rows")
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
