"""Reading ahead in a background thread: order, distance, errors, and the end of the thread."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from pathsynth.core.errors import DataError
from pathsynth.data.prefetch import prefetch


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_values_come_in_order_from_one_other_thread():
    threads = set()

    def read(key: int) -> int:
        threads.add(threading.current_thread())
        return key * key

    assert list(prefetch(read, range(50))) == [key * key for key in range(50)]
    assert len(threads) == 1 and threading.main_thread() not in threads
    assert list(prefetch(read, [])) == [] and not prefetch_threads()


def test_one_key_is_read_ahead_and_no_more():
    keys = []

    def issue():
        for key in range(4):
            keys.append(key)
            yield key

    with closing(prefetch(str, issue())) as values:
        for done, value in enumerate(values):
            assert value == str(done) and keys == list(range(min(done + 2, 4)))


def test_error_of_a_read_is_raised_in_its_turn_and_ends_the_thread():
    error = DataError("train_images.npy", "is truncated")

    def read(key: int) -> int:
        if key == 2:
            raise error
        return key

    values, found = prefetch(read, range(9)), []
    with pytest.raises(DataError) as caught:
        found.extend(iter(lambda: next(values), None))
    assert caught.value is error and not prefetch_threads()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_interrupted_loop_ends_the_thread(kind: type[BaseException]):
    with pytest.raises(kind), closing(prefetch(str, range(9))) as values:
        for _ in values:
            assert prefetch_threads()
            raise kind
    assert not prefetch_threads()
