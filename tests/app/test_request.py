"""What the page accepts: every mistake is one sentence that says what to enter."""

from __future__ import annotations

import pytest

from pathsynth.app.request import MAX_LENGTH, Request, RequestError, check_request

VALID = {"sentence": "mucus", "number": 4, "seed": 7, "guidance_scale": 3.5}


def test_valid_request_has_whole_numbers():
    assert check_request(**VALID) == Request("mucus", 4, 7, 3.5)
    found = check_request(**VALID | {"number": 50.0, "seed": 2.0**32 - 1, "guidance_scale": 1})
    assert (found.number, found.seed, found.guidance_scale) == (50, 2**32 - 1, 1.0) and isinstance(found.number, int)


@pytest.mark.parametrize(("change", "message"), [
    ({"sentence": None}, "Choose a tissue, or write a sentence that names one."),
    ({"sentence": " \n"}, "Choose a tissue, or write a sentence that names one."),
    ({"sentence": "a" * (MAX_LENGTH + 1)}, "The sentence has 501 characters. Use at most 500."),
    ({"number": None}, "The number of images is empty. Enter a whole number from 1 to 50."),
    ({"number": 0}, "The number of images cannot be 0. Enter a whole number from 1 to 50."),
    ({"number": 51}, "The number of images cannot be 51. Enter a whole number from 1 to 50."),
    ({"number": 2.5}, "The number of images cannot be 2.5. Enter a whole number from 1 to 50."),
    ({"number": float("nan")}, "The number of images cannot be nan. Enter a whole number from 1 to 50."),
    ({"number": float("inf")}, "The number of images cannot be inf. Enter a whole number from 1 to 50."),
    ({"number": True}, "The number of images cannot be True. Enter a whole number from 1 to 50."),
    ({"number": "7"}, "The number of images cannot be 7. Enter a whole number from 1 to 50."),
    ({"seed": -1}, "The seed cannot be -1. Enter a whole number from 0 to 4294967295."),
    ({"seed": 2**32}, "The seed cannot be 4294967296. Enter a whole number from 0 to 4294967295."),
    ({"guidance_scale": 0.9}, "The guidance scale cannot be 0.9. Enter a number from 1 to 100."),
    ({"guidance_scale": None}, "The guidance scale is empty. Enter a number from 1 to 100."),
])  # fmt: skip
def test_invalid_entry_is_one_sentence(change, message):
    with pytest.raises(RequestError) as caught:
        check_request(**VALID | change)
    assert caught.value.message == message
