"""Downloads from the Hugging Face hub, with network errors as one line that names the fix."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

from pathsynth.core.errors import FetchError, one_line
from pathsynth.core.io import os_error_reason

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
STATUS_REMEDIES = {
    403: "it forbids the access, so the token may lack the permission to read this repository",
    407: "the proxy asks for a login: set HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
    429: "too many requests: try again later",
    451: "it is not available in this country",
}


@contextmanager
def catch_network_errors(what: object, alternative: str) -> Iterator[None]:
    """Converts the errors of the hub's client to a FetchError.

    Args:
        what: name of the download.
        alternative: an alternative to the download, appended to the error message.

    Raises:
        FetchError: if there is no connection, offline mode is on, the server refuses or fails, or the disk is full.
    """
    from httpx2 import InvalidURL
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except HFValidationError as error:
        raise FetchError(what, f"is not a valid repository name: {one_line(error)}") from error
    except (HTTPError, OSError) as error:
        raise FetchError(what, _describe(error, alternative)) from error
    except InvalidURL as error:
        remedy = "in HTTPS_PROXY and ALL_PROXY, write special characters of the password as %23 and so on"
        raise FetchError(what, f"{one_line(error)}; {remedy}") from error
    except (ValueError, ImportError) as error:
        # the client raises these for an answer that is not JSON, and for a proxy that it cannot use
        cause = "the answer is not JSON, as from a login page" if isinstance(error, JSONDecodeError) else one_line(error)
        raise FetchError(
            what, f"{cause}; check the network and the proxy in HTTPS_PROXY or ALL_PROXY, {alternative}"
        ) from error


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
        case errors.HfHubHTTPError() if error.response.status_code == 401 and "Authorization" in error.response.request.headers:
            return "the token in HF_TOKEN, or of `hf auth login`, is not valid: renew it, or unset it for a public repository"
        case errors.GatedRepoError():
            return f"is gated: accept its terms on its page and run `hf auth login`; {alternative}"
        case errors.RevisionNotFoundError():
            return f"has no such revision; {alternative}"
        case errors.RepositoryNotFoundError():
            return f"is missing or private: check its name, or run `hf auth login`; {alternative}"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            remedy = STATUS_REMEDIES.get(status, "try again later" if status >= 500 else "check the address")
            return f"the server answered with status {status}; {remedy}, {alternative}"
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _describe(error.__cause__, alternative)
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError() if is_offline_mode():
            return f"is not cached, and HF_HUB_OFFLINE forbids downloads: unset it for one run, {alternative}"
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, errors.HTTPError):
            return f"is not cached, and {_describe(error.__cause__, alternative)}"
        case errors.LocalEntryNotFoundError():
            return f"is not cached, and the server cannot be reached: check the network, {alternative}"
        case OSError() if error.errno in DISK_FULL:
            return f"{os_error_reason(error)}: free some space or choose a different folder; the partial download is kept"
        case OSError() if error.errno in NOT_WRITABLE:
            return f"could not be written: {os_error_reason(error)}"
        case OSError():
            return f"download failed: {one_line(error)}; start again, {alternative}"
        case _ if "CERTIFICATE_VERIFY_FAILED" in str(error):
            remedy = "a proxy that inspects traffic needs its certificate in SSL_CERT_FILE"
            return f"no secure connection: {one_line(error)}; {remedy}, {alternative}"
        case _:
            return f"no connection: {one_line(error)}; check the network and HTTPS_PROXY, and start again, {alternative}"
