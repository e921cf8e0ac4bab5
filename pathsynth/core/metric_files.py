"""The files in metrics/: a short headline, of which DVC makes columns, and the details, of which it makes none.

DVC makes a column of every number in a metrics file, and a thousand columns cannot be read; but of files that are kept in git
it restores those alone that are metrics. So a file of details holds a list of one object: a metric to DVC, that shows no lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathsynth.core.io import json_object, json_text, parse_json, read_bytes, write_text


def write_details(path: str | Path, details: dict[str, Any]) -> None:
    """Writes details, whole or not at all.

    Raises:
        DataError: for a number that is not finite, or a file that cannot be written.
    """
    write_text(path, json_text(path, [details]))


def read_details(path: str | Path) -> dict[str, Any]:
    """Reads details; also of earlier versions, which wrote the object itself.

    Raises:
        DataError: if the file is missing or damaged, or holds something else.
    """
    return parse_details(read_bytes(path), path)


def parse_details(data: bytes, path: str | Path) -> dict[str, Any]:
    """Details from the bytes of a file; `path` is named in errors.

    Raises:
        DataError: as `read_details`.
    """
    value = parse_json(data, path)
    return json_object(value[0] if isinstance(value, list) and len(value) == 1 else value, path)


def get_nested(tree: Any, keys: tuple[str, ...]) -> Any:
    """What stands at the end of nested keys, or None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
