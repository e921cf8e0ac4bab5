"""Checks of what a visitor enters; every mistake is a sentence for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from pathsynth.core.errors import PathsynthError
from pathsynth.synthesis.records import MAX_GUIDANCE_SCALE
from pathsynth.synthesis.stream import MAX_SEED

# Images per request, and characters of a sentence.
MAX_NUMBER, MAX_LENGTH = 50, 500


class RequestError(PathsynthError):
    """An entry of the page that cannot be used."""


@dataclass(frozen=True)
class Request:
    """A valid request.

    Attributes:
        sentence: names one tissue of the data set; `stream_images` checks that.
        number: how many images, from 1 to MAX_NUMBER.
        seed: of the noise, from 0 to MAX_SEED.
        guidance_scale: weight of the text, from 1 to MAX_GUIDANCE_SCALE.
    """

    sentence: str
    number: int
    seed: int
    guidance_scale: float


def check_request(sentence: str | None, number: float | None, seed: float | None, guidance_scale: float | None) -> Request:
    """Checks the entries of the page, in its order; None is an empty field.

    Raises:
        RequestError: if one is empty, out of range or not a whole number.
    """
    if not (sentence or "").strip():
        raise RequestError("Choose a tissue, or write a sentence that names one.")
    assert sentence is not None
    if len(sentence) > MAX_LENGTH:
        raise RequestError(f"The sentence has {len(sentence)} characters. Use at most {MAX_LENGTH}.")
    return Request(
        sentence,
        _check_whole("number of images", number, 1, MAX_NUMBER),
        _check_whole("seed", seed, 0, MAX_SEED),
        _check_guidance(guidance_scale),
    )


def _check_whole(name: str, value: float | None, low: int, high: int) -> int:
    if not _is_number(value) or not low <= value <= high or value != int(value):
        raise RequestError(f"The {name} {_describe(value)}. Enter a whole number from {low} to {high}.")
    return int(value)


def _check_guidance(value: float | None) -> float:
    if not _is_number(value) or not 1 <= value <= MAX_GUIDANCE_SCALE:
        raise RequestError(f"The guidance scale {_describe(value)}. Enter a number from 1 to {MAX_GUIDANCE_SCALE}.")
    return float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _describe(value: object) -> str:
    return "is empty" if value is None or value == "" else f"cannot be {str(value)[:40]}"
