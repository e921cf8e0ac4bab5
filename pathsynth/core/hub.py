"""What goes wrong between here and a server, in one line with the remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pathsynth.core.errors import FetchError, one_line
from pathsynth.core.io import reason

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def network_faults(what: object, otherwise: str) -> Iterator[None]:
    """Turns what the hub's client raises into a FetchError.

    Args:
        what: what was to be fetched; the error names it.
        otherwise: what can be done instead, the end of the line.

    Raises:
        FetchError: no connection, offline mode, a refusal or fault of the server, a full disk.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except HFValidationError as error:
        raise FetchError(what, f"is no name that the hub allows: {one_line(error)}") from error
    except (HTTPError, OSError) as error:
        raise FetchError(what, _problem(error, otherwise)) from error


def snapshot(name: str, revision: str, wanted: Sequence[str], needed: Sequence[str], otherwise: str) -> Path:
    """The folder of a repository's files in the hub's cache, fetched where they are not there yet.

    Args:
        name: the repository, OWNER/NAME.
        revision: a commit.
        wanted: patterns of the files to fetch.
        needed: files without which the cache does not have it whole.
        otherwise: what can be done instead, the end of an error's line.

    Raises:
        FetchError: the repository is missing, private, gated or out of reach, or the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = list(wanted)
    with network_faults(f"{name} at {revision}", otherwise):
        try:
            # a commit does not change, so what the cache has whole needs no question to the hub
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
            if all((folder / path).is_file() for path in needed):
                return folder
        except LocalEntryNotFoundError:
            pass
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def _problem(error: BaseException, otherwise: str) -> str:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return f"is gated: accept its terms on its page and run `hf auth login`; {otherwise}"
        case errors.RevisionNotFoundError():
            return f"has no such revision; {otherwise}"
        case errors.RepositoryNotFoundError():
            return f"is not on the hub, or private: check its name, or run `hf auth login`; {otherwise}"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            remedy = "try again later" if status >= 500 or status == 429 else "check the address"
            return f"the server answered with status {status}; {remedy}, {otherwise}"
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _problem(error.__cause__, otherwise)
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            return f"{_unreachable()}, {otherwise}"
        case OSError() if error.errno in FULL:
            return f"{reason(error)}: make room or choose another folder and start again; what was fetched is kept"
        case OSError() if error.errno in FORBIDDEN:
            return f"could not be written: {reason(error)}"
        case OSError():
            return f"could not be fetched: {one_line(error)}; start again, {otherwise}"
        case _:
            return f"no connection: {one_line(error)}; check the network and start again, {otherwise}"


def _unreachable() -> str:
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return "is not on this machine, and HF_HUB_OFFLINE forbids fetching it: unset it for one run"
    return "is not on this machine, and the server cannot be reached: check the network"
