"""Files of an experiment that git does not hold, found in DVC's cache on this machine. Nothing is downloaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# (revision, path) to the cached file, or None where the cache lacks it.
FindCached = Callable[[str, str], Path | None]
# dvc.lock may be anyone's, and its checksums become paths.
CHECKSUM = re.compile(r"[0-9a-f]{32}(\.dir)?")


def find_cached(lock: Mapping[str, Any], path: str, cache_path: Callable[[str], str]) -> Path | None:
    """Finds a file of an output folder in DVC's cache.

    Args:
        lock: the stages of dvc.lock by name.
        path: the file, in a folder that is an output of a stage, such as `data/generated/raw.npz`.
        cache_path: gives the place of a checksum in the cache.

    Returns:
        The cached file, or None where the folder is no output, or the cache lacks it or its listing.
    """
    folder, _, name = path.rpartition("/")
    checksums = [out.get("md5") for stage in lock.values() for out in stage.get("outs", []) if out.get("path") == folder]
    listing = _locate(checksums[0] if checksums else None, cache_path)
    if listing is None:
        return None
    try:
        entries = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return _locate(entries.get(name), cache_path)


def find_nothing(revision: str, path: str) -> None:
    """Finds no file: for pages without images of the cache."""


def _locate(checksum: object, cache_path: Callable[[str], str]) -> Path | None:
    if not isinstance(checksum, str) or not CHECKSUM.fullmatch(checksum):
        return None
    path = Path(cache_path(checksum))
    return path if path.is_file() else None
