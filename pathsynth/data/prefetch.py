"""Reading ahead: the next batch is read in a background thread while the device computes on the current one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def prefetch(read: Callable[[Key], Value], keys: Iterable[Key]) -> Generator[Value, None, None]:
    """Yields `read(key)` for each key, in order; a background thread is one key ahead of the caller.

    torch's DataLoader reads ahead only in worker processes, which take memory and seconds to start. Close the generator
    (`contextlib.closing`) to end the thread where the loop may raise.

    Args:
        read: called in the thread, for one key at a time; must not draw random numbers that the caller draws too.
        keys: iterated by the caller's thread, one ahead.

    Raises:
        Exception: whatever `read` raises, when its value is due.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        current: Future[Value] | None = None
        for key in keys:
            following = pool.submit(read, key)
            if current is not None:
                yield current.result()
            current = following
        if current is not None:
            yield current.result()
