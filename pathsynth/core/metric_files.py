"""Files in metrics/: a short headline, which DVC shows as columns, and detailed metrics, which it does not.

`dvc exp show` has a column for every number in a metrics file, which for detailed metrics would be a thousand. They must be
metrics files all the same, because DVC restores no other files that git tracks. So each is a list with a single object, for
which DVC shows no columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathsynth.core.io import check_json_object, format_json, parse_json, read_bytes, write_text


def write_details(path: str | Path, details: dict[str, Any]) -> None:
    """Writes detailed metrics atomically.

    Raises:
        DataError: for NaN or an infinite number, or if the file cannot be written.
    """
    write_text(path, format_json(path, [details]))


def read_details(path: str | Path) -> dict[str, Any]:
    """Reads detailed metrics; also accepts the bare object that earlier versions wrote.

    Raises:
        DataError: if the file is missing, damaged or holds something else.
    """
    return parse_details(read_bytes(path), path)


def parse_details(data: bytes, path: str | Path) -> dict[str, Any]:
    """Parses detailed metrics; `path` is named in errors.

    Raises:
        DataError: as `read_details`.
    """
    value = parse_json(data, path)
    return check_json_object(value[0] if isinstance(value, list) and len(value) == 1 else value, path)


def get_nested(tree: Any, keys: tuple[str, ...]) -> Any:
    """Returns the value under nested keys, or None where one is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
