"""Fetches MedMNIST archives: addresses and checksums are medmnist's own, the transfer is huggingface_hub's, which resumes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import click

from pathsynth.core.errors import DataError, FetchError
from pathsynth.core.hub import network_faults
from pathsynth.core.io import reason
from pathsynth.core.progress import bar

BLOCK = 2**22


def fetch_archive(flag: str, size: int, root: Path) -> Path:
    """Brings the archive of a MedMNIST set into `root`, under medmnist's name for it, and checks it by MD5.

    A whole file that lies there is used as it is. A damaged one is named, and replaced once the new one is whole. What a broken
    transfer has brought stays beside it, and the next call goes on from there.

    Args:
        flag: MedMNIST's name of the set, such as `pathmnist`.
        size: side of its images in pixels: 28, 64, 128 or 224.
        root: folder of the archives, made if need be; medmnist's own is `~/.medmnist`.

    Raises:
        FetchError: if the archive cannot be fetched, with what else can be done.
        DataError: if a file cannot be read or written.
    """
    from filelock import FileLock
    from medmnist import INFO

    suffix = "" if size == 28 else f"_{size}"
    url, md5 = INFO[flag][f"url{suffix}"], INFO[flag][f"MD5{suffix}"]
    path = root / f"{flag}{suffix}.npz"
    if path.exists() and md5_of(path) == md5:
        # before the lock, so that the folder may be read-only
        return path
    try:
        root.mkdir(parents=True, exist_ok=True)
        # two experiments that start at once would write into each other's file
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not _is_whole(path, md5):
                _replace(path, url, md5)
    except OSError as error:
        raise DataError(path, f"could not be written: {reason(error)}") from error
    return path


def md5_of(path: Path) -> str:
    """MD5 of a file in hexadecimal digits, with a progress bar where it is large.

    Raises:
        DataError: if the file cannot be read.
    """
    checksum = hashlib.md5(usedforsecurity=False)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file, bar(None, f"checking {path.name}", size, hidden=size < 2**28, unit="B") as done:
            while block := file.read(BLOCK):
                checksum.update(block)
                done.update(len(block))
    except OSError as error:
        raise DataError(path, f"could not be read: {reason(error)}") from error
    return checksum.hexdigest()


def _is_whole(path: Path, md5: str) -> bool:
    if not path.exists():
        return False
    found = md5_of(path)
    if found != md5:
        click.echo(f"{path}: is damaged, its MD5 is {found} and not {md5}; it is fetched anew", err=True)
    return found == md5


def _replace(path: Path, url: str, md5: str) -> None:
    """Fetches into a file beside `path`, which takes its place when the checksum is right."""
    part = path.with_name(f".{path.name}.part")
    resumed = part.exists()
    _transfer(path, url, md5, part)
    found = md5_of(part)
    if found != md5:
        part.unlink()
        if not resumed:
            raise FetchError(path, f"the file at {url} has MD5 {found}, not {md5} as medmnist says; {_by_hand(path, url, md5)}")
        click.echo(f"{path}: what an earlier transfer had left does not fit; fetched from the start", err=True)
        _replace(path, url, md5)
        return
    os.replace(part, path)


def _transfer(path: Path, url: str, md5: str, part: Path) -> None:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    with network_faults(path, _by_hand(path, url, md5)), open(part, "ab") as file:
        # not in the client's reference, but what all its downloads go through: it resumes, tries again and shows bytes and rate
        try:
            http_get(url, file, resume_size=part.stat().st_size, displayed_filename=path.name)
        except HfHubHTTPError as error:
            # 416: nothing is left to send, so the part is whole, or of another file, which its checksum tells
            if error.response.status_code != 416:
                raise


def _by_hand(path: Path, url: str, md5: str) -> str:
    return f"or fetch {url} by hand (MD5 {md5}) and put it there"
