"""The manifest of a folder of synthetic images: a CSV file with one record per row."""

from __future__ import annotations

import csv
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path

from pathsynth.core.errors import DataError
from pathsynth.core.io import FORMULA_PREFIXES, atomic_write, catch_read_errors
from pathsynth.synthesis.records import Record, parse_record

MANIFEST = "manifest.csv"
MAX_IMAGES = 10_000
# The first one with the most occurrences in the header is used.
DELIMITERS = (",", ";", "\t")
TEXT_COLUMNS = ("prompt", "negative_prompt")
NUMBER_COLUMNS = ("seed", "attempt", "confidence", "num_inference_steps", "guidance_scale", "image_size", "channels")


def write_manifest(path: Path, records: Sequence[Record]) -> None:
    """Writes one row per record.

    Raises:
        DataError: if the file cannot be written.
    """
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        # without quotes, the csv module writes a lone carriage return that it cannot read
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(Record.model_fields)
        writer.writerows([_escape(value) for value in dict(record).values()] for record in records)


def read_manifest(path: Path) -> list[Record]:
    """Reads the records of a manifest, in order.

    A spreadsheet may have saved it: with a byte order mark, as UTF-16, with semicolons or tabs, decimal commas, empty rows.

    Raises:
        DataError: if the file is missing, not CSV, empty or too long, lists a file twice, or has an invalid value.
    """
    with catch_read_errors(path, "a CSV file in UTF-8 or UTF-16"):
        content = path.read_bytes()
        text = content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
        delimiter = max(DELIMITERS, key=text.partition("\n")[0].count)
        rows = list(csv.DictReader(StringIO(text, newline=""), delimiter=delimiter, strict=True))
    rows = [row for row in rows if any(row.values())]
    if not 0 < len(rows) <= MAX_IMAGES:
        raise DataError(path, f"has {len(rows)} rows; allowed: 1 to {MAX_IMAGES}")
    decimal = "." if delimiter == "," else ","
    records = [_parse_row(row, f"{path}, row {number}", decimal) for number, row in enumerate(rows, 1)]
    # two records of one file would overwrite each other
    if len({record.file for record in records}) < len(records):
        raise DataError(path, "lists a file twice")
    return records


def _escape(value: object) -> object:
    """A cell of the file; an apostrophe keeps a spreadsheet from evaluating a text as a formula."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith((*FORMULA_PREFIXES, "'")) else value


def _parse_row(row: dict[str | None, str | None], where: str, decimal: str) -> Record:
    values: dict[str, int | float | str] = {}
    for key, text in row.items():
        # DictReader's keys and values of cells that have no counterpart
        if key is None or text is None:
            raise DataError(where, "does not have as many cells as the header")
        if text or key in TEXT_COLUMNS:
            values[key] = _parse_number(text.replace(decimal, ".")) if key in NUMBER_COLUMNS else text.removeprefix("'")
    if isinstance(values.get("seed"), float):
        raise DataError(where, f"seed: {row['seed']} was rounded by a spreadsheet; use the manifest as it was written")
    return parse_record(values, where)


def _parse_number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
