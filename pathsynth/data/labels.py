"""The classes of a data set: labels in words, slugs, and their order.

PathMNIST's nine classes stand here, since the phantoms imitate them; those of the other sets are medmnist's own table
(MedMNIST v2, Yang et al., Scientific Data 2023).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from pathsynth.core.errors import CONTROLS

PATHMNIST = (
    "adipose",
    "background",
    "debris",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal colon mucosa",
    "cancer-associated stroma",
    "colorectal adenocarcinoma epithelium",
)


# Bytes: file names are made of slugs, and may have 255.
LONGEST_SLUG = 120


def slug(label: str) -> str:
    """The snake_case name of a label in any script, e.g. `smooth_muscle`; used in metrics, file names and tables."""
    text = unicodedata.normalize("NFC", label.lower())
    # marks are parts of letters: vowels in Indic scripts, accents that have no letter of their own
    return re.sub("_+", "_", "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else "_" for c in text)).strip("_")


SLUGS = tuple(slug(label) for label in PATHMNIST)


def resolve(named: str | Sequence[str]) -> tuple[str, ...]:
    """The labels that a data set's section names: those of a MedMNIST set, or the words themselves.

    Args:
        named: name of a 2D MedMNIST set with one label per image, such as `bloodmnist`, or at least two labels in words.

    Raises:
        ValueError: for another name, or for labels that are not texts or share a slug.
    """
    if isinstance(named, str):
        return of_set(named)
    if not isinstance(named, Sequence) or len(named) < 2 or not all(isinstance(label, str) for label in named):
        raise ValueError("must be the name of a MedMNIST set or a list of at least two labels, all of them texts")
    slugs = [slug(label) for label in named]
    for label, short in zip(named, slugs, strict=True):
        if CONTROLS.search(label):
            raise ValueError(f"label {label!r} has characters that control lines or the direction of writing")
        if not short or slugs.count(short) > 1:
            raise ValueError(f"label {label!r} has the slug {short!r}, which must be unique and not empty")
        if len(short.encode()) > LONGEST_SLUG:
            raise ValueError(f"label {label!r} is too long: its slug has {len(short.encode())} bytes, most {LONGEST_SLUG}")
    return tuple(named)


def of_set(flag: str) -> tuple[str, ...]:
    """Labels of a 2D MedMNIST set, in the order of their numbers.

    Raises:
        ValueError: for an unknown set, and for sets of volumes or with several labels per image, with the reason.
    """
    if flag == "pathmnist":
        # the default needs no import of medmnist, which takes seconds
        return PATHMNIST
    from medmnist import INFO

    usable = [name for name, info in INFO.items() if not _unfit(info)]
    if flag not in INFO:
        raise ValueError(f"not a MedMNIST set; allowed: {', '.join(usable)}, or a list of labels")
    if problem := _unfit(INFO[flag]):
        raise ValueError(f"{problem}; allowed: {', '.join(usable)}, or a list of labels")
    return tuple(INFO[flag]["label"][str(number)] for number in range(len(INFO[flag]["label"])))


def _unfit(info: dict) -> str | None:
    """Why a MedMNIST set cannot be used, or None."""
    if info["python_class"].endswith("3D"):
        return "a set of volumes, while the base draws flat images"
    if info["task"].startswith("multi-label"):
        return "a multi-label set: one image may have several labels or none, while a prompt asks for one"
    return None
