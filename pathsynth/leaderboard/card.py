"""card.yaml: who submits what to the leaderboard. Cards come from anyone, so their texts are plain words and https links."""

from __future__ import annotations

import datetime
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pathsynth.core.errors import DataError
from pathsynth.core.io import catch_read_errors
from pathsynth.core.params import NonNegative, PositiveInt, Section, parse_yaml, validate

MAX_BYTES = 10_000
MAX_TEXT, MAX_AUTHORS = 80, 20
PUNCTUATION = " .,:;()+&'/_%-"
# A page of the web, or a file of this repository: more of `..` would lead to other repositories of the same host.
LINK = re.compile(
    r"https://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:\d{1,5})?(/[A-Za-z0-9._~/?=&%+,:#-]*)?|\.\./(?!.*\.\.)[A-Za-z0-9._/-]+"
)


def _check_text(text: str) -> str:
    """Allows letters and digits of any script and plain punctuation: nothing that Markdown, HTML or a terminal acts on."""
    if text != text.strip() or not any(character.isalnum() for character in text):
        raise ValueError("must have a letter or digit, and no space at its ends")
    for character in text:
        # letters, combining marks, numbers
        if unicodedata.category(character)[0] not in "LMN" and character not in PUNCTUATION:
            raise ValueError(f"{character!r} is not allowed; use letters, digits and {PUNCTUATION.strip()}")
    if "://" in text or "www." in text.lower():
        raise ValueError("links belong to the key `link`")
    return text


def _check_link(link: str) -> str:
    if not LINK.fullmatch(link):
        raise ValueError("must be https://HOST/PATH of letters, digits and ._~/?=&%+,:#-, or ../FILE of this repository")
    return link


Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_check_text)]
Link = Annotated[str, Field(max_length=200), AfterValidator(_check_link)]


class Cost(Section):
    """Hours of one training with all that it needs to generate the images, and the device that took them."""

    hours: NonNegative
    device: Text


class Card(Section):
    """Contents of card.yaml.

    Attributes:
        name: of the method, in the table.
        authors: who made it.
        link: to the paper, the code or the images; `../FILE` is a file of this repository.
        licence: of the images.
        trainings: number of independent trainings; there is one file of scores for each.
        selection: how images were selected: `none` for first attempts, `gate` for images that the benchmark's gate accepted,
            `other` for anything else, such as a choice by hand.
        cost: of one training.
        date: of the submission.
    """

    name: Text
    authors: Annotated[list[Text], Field(min_length=1, max_length=MAX_AUTHORS)]
    link: Link
    licence: Text
    trainings: PositiveInt
    selection: Literal["none", "gate", "other"]
    cost: Cost
    date: datetime.date


def read_card(path: Path) -> Card:
    """Reads and validates a card.

    Raises:
        DataError: the file is missing, too large or no text.
        ParamsError: the first mistake in it.
    """
    with catch_read_errors(path, "UTF-8 text"):
        if path.stat().st_size > MAX_BYTES:
            raise DataError(path, f"has {path.stat().st_size:,} bytes; allowed: {MAX_BYTES:,}")
        text = path.read_bytes().decode("utf-8")
    return validate(path, "", Card, parse_yaml(text, path))
