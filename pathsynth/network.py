"""What goes wrong between here and a server, in one line with the remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pathsynth.errors import FetchError, one_line
from pathsynth.files import reason

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
