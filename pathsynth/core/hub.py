"""Downloads from the Hugging Face hub, with network errors as one line that names the fix."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pathsynth.core.errors import FetchError, one_line
from pathsynth.core.io import os_error_reason

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def catch_network_errors(what: object, alternative: str) -> Iterator[None]:
    """Converts the errors of the hub's client to a FetchError.

    Args:
        what: name of the download.
        alternative: an alternative to the download, appended to the error message.

    Raises:
        FetchError: if there is no connection, offline mode is on, the server refuses or fails, or the disk is full.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except HFValidationError as error:
        raise FetchError(what, f"is not a valid repository name: {one_line(error)}") from error
    except (HTTPError, OSError) as error:
        raise FetchError(what, _describe(error, alternative)) from error


def download_snapshot(name: str, revision: str, wanted: Sequence[str], needed: Sequence[str], alternative: str) -> Path:
    """Downloads files of a repository, unless the hub's cache has them, and returns their folder.

    Args:
        name: the repository, OWNER/NAME.
        revision: a commit.
        wanted: patterns of the files to download.
        needed: files without which a cached copy is incomplete.
        alternative: an alternative to the download, appended to an error message.

    Raises:
        FetchError: if the repository is missing, private, gated or out of reach, or the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = list(wanted)
    with catch_network_errors(f"{name} at {revision}", alternative):
        try:
            # a commit never changes, so a complete copy needs no request
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
            if all((folder / path).is_file() for path in needed):
                return folder
        except LocalEntryNotFoundError:
            pass
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def _describe(error: BaseException, alternative: str) -> str:
    from huggingface_hub import errors, is_offline_mode

    match error:
        case errors.GatedRepoError():
            return f"is gated: accept its terms on its page and run `hf auth login`; {alternative}"
        case errors.RevisionNotFoundError():
            return f"has no such revision; {alternative}"
        case errors.RepositoryNotFoundError():
            return f"is missing or private: check its name, or run `hf auth login`; {alternative}"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            remedy = "try again later" if status >= 500 or status == 429 else "check the address"
            return f"the server answered with status {status}; {remedy}, {alternative}"
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _describe(error.__cause__, alternative)
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError() if is_offline_mode():
            return f"is not cached, and HF_HUB_OFFLINE forbids downloads: unset it for one run, {alternative}"
        case errors.LocalEntryNotFoundError():
            return f"is not cached, and the server cannot be reached: check the network, {alternative}"
        case OSError() if error.errno in DISK_FULL:
            return f"{os_error_reason(error)}: free some space or choose a different folder; the partial download is kept"
        case OSError() if error.errno in NOT_WRITABLE:
            return f"could not be written: {os_error_reason(error)}"
        case OSError():
            return f"download failed: {one_line(error)}; start again, {alternative}"
        case _:
            return f"no connection: {one_line(error)}; check the network and start again, {alternative}"
