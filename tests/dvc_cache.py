"""Where DVC keeps what a lock file names: in a cache and in a remote by the same relative paths."""

from __future__ import annotations

import json
from pathlib import Path

from pathsynth.core.params import read_yaml


def path_of(checksum: str) -> str:
    """The place of an object in a cache or remote."""
    return f"files/md5/{checksum[:2]}/{checksum[2:]}"


def objects(cache: Path) -> set[str]:
    """The checksums of the objects in a cache or remote."""
    return {path.parent.name + path.name for path in (cache / "files" / "md5").glob("??/*")}


def listing_of(folder: Path, out: str) -> str:
    """The checksum of an out that is a folder."""
    entries = [entry for stage in read_yaml(folder / "dvc.lock")["stages"].values() for entry in stage.get("outs", [])]
    return next(entry["md5"] for entry in entries if entry["path"] == out)


def files_of(folder: Path, out: str) -> dict[str, str]:
    """The files of an out that is a folder, by their relative paths, and their checksums."""
    listing = folder / ".dvc" / "cache" / path_of(listing_of(folder, out))
    return {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text())}


def checksums_of(folder: Path, out: str) -> set[str]:
    """The objects of an out that is a folder: its listing and its files."""
    return {listing_of(folder, out), *files_of(folder, out).values()}
