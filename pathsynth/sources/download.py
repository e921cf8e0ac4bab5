"""Downloads MedMNIST archives: medmnist's addresses and checksums, huggingface_hub's transfer, which resumes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import click

from pathsynth.core.errors import DataError, FetchError
from pathsynth.core.hub import catch_network_errors
from pathsynth.core.io import catch_read_errors, os_error_reason
from pathsynth.core.progress import progress_bar

BLOCK_BYTES = 2**22
# Smaller files are hashed without a progress bar.
LARGE_FILE_BYTES = 2**28


def fetch_archive(flag: str, size: int, root: Path) -> Path:
    """Downloads the archive of a MedMNIST set into `root`, under medmnist's file name, and checks its MD5.

    An intact file is used as it is. A damaged one is reported, and replaced once the new one is complete. An interrupted
    download is kept beside it, and the next call resumes it.

    Args:
        flag: MedMNIST's name of the set, such as `pathmnist`.
        size: side of its images in pixels: 28, 64, 128 or 224.
        root: folder of the archives, made if missing; medmnist's own is `~/.medmnist`.

    Raises:
        FetchError: if the archive cannot be downloaded.
        DataError: if a file cannot be read or written.
    """
    from filelock import FileLock
    from medmnist import INFO

    suffix = "" if size == 28 else f"_{size}"
    url, md5 = INFO[flag][f"url{suffix}"], INFO[flag][f"MD5{suffix}"]
    path = root / f"{flag}{suffix}.npz"
    if path.exists() and compute_md5(path) == md5:
        # before the lock, so that the folder may be read-only
        return path
    try:
        root.mkdir(parents=True, exist_ok=True)
        # concurrent experiments would write into each other's file
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not _is_intact(path, md5):
                _download(path, url, md5)
    except OSError as error:
        raise DataError(path, f"could not be written: {os_error_reason(error)}") from error
    return path


def compute_md5(path: Path) -> str:
    """Computes the MD5 of a file, in hexadecimal digits, with a progress bar for large files.

    Raises:
        DataError: if the file cannot be read.
    """
    checksum = hashlib.md5(usedforsecurity=False)
    with catch_read_errors(path, "a file"), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        with progress_bar(None, f"checking {path.name}", size, hidden=size < LARGE_FILE_BYTES, unit="B") as progress:
            while block := file.read(BLOCK_BYTES):
                checksum.update(block)
                progress.update(len(block))
    return checksum.hexdigest()


def _is_intact(path: Path, md5: str) -> bool:
    if not path.exists():
        return False
    found = compute_md5(path)
    if found != md5:
        click.echo(f"{path}: is damaged (MD5 {found}, expected {md5}); downloading it again", err=True)
    return found == md5


def _download(path: Path, url: str, md5: str) -> None:
    """Downloads into a file beside `path`, which replaces it if the checksum matches."""
    part = path.with_name(f".{path.name}.part")
    resumed = part.exists()
    _transfer(path, url, md5, part)
    found = compute_md5(part)
    if found == md5:
        os.replace(part, path)
        return
    part.unlink()
    if not resumed:
        raise FetchError(
            path, f"{url} has MD5 {found}, but medmnist expects {md5}; try again later, {_manual_remedy(url, md5)}"
        )
    click.echo(f"{path}: the interrupted download was of a different file; starting again", err=True)
    _download(path, url, md5)


def _transfer(path: Path, url: str, md5: str, part: Path) -> None:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    with catch_network_errors(path, _manual_remedy(url, md5)), open(part, "ab") as file:
        # undocumented, but the client uses it for all downloads: it resumes, retries and shows progress
        try:
            http_get(url, file, resume_size=part.stat().st_size, displayed_filename=path.name)
        except HfHubHTTPError as error:
            # 416: nothing is left to send, so the part is complete or of a different file; its checksum will tell
            if error.response.status_code != 416:
                raise


def _manual_remedy(url: str, md5: str) -> str:
    return f"or download {url} by hand (MD5 {md5}) and put it there"
