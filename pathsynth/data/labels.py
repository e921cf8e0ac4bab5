"""Class labels of a data set: names in words, slugs, and their order.

PathMNIST's nine classes are listed here because the phantoms imitate them; those of the other sets come from medmnist's table
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
# Bytes. Slugs become parts of file names, which are limited to 255.
LONGEST_SLUG = 120
# Labels are stored as uint8.
MAX_LABELS = 256


def slugify(label: str) -> str:
    """Converts a label in any script to snake_case, e.g. `smooth_muscle`, for metrics, file names and tables."""
    text = unicodedata.normalize("NFC", label.lower())
    # category M: combining marks are parts of letters, such as Indic vowels and accents without a precomposed letter
    return re.sub("_+", "_", "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else "_" for c in text)).strip("_")


SLUGS = tuple(slugify(label) for label in PATHMNIST)


def resolve_labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    """Resolves the `labels` option of a dataset section.

    Args:
        labels: name of a 2D MedMNIST set with one label per image, such as `bloodmnist`, or at least two labels.

    Raises:
        ValueError: for any other name, or for labels that are not text or share a slug.
    """
    if isinstance(labels, str):
        return medmnist_labels(labels)
    if not isinstance(labels, Sequence) or len(labels) < 2 or not all(isinstance(label, str) for label in labels):
        raise ValueError("must be the name of a MedMNIST set or a list of at least two strings")
    if len(labels) > MAX_LABELS:
        raise ValueError(f"has {len(labels)} labels; allowed: 2 to {MAX_LABELS}")
    slugs = [slugify(label) for label in labels]
    for label, slug in zip(labels, slugs, strict=True):
        if CONTROLS.search(label):
            raise ValueError(f"label {label!r} has control characters or bidirectional formatting marks")
        if not slug or slugs.count(slug) > 1:
            raise ValueError(f"label {label!r} has the slug {slug!r}, which must be unique and not empty")
        if len(slug.encode()) > LONGEST_SLUG:
            raise ValueError(f"label {label!r} is too long: its slug has {len(slug.encode())} bytes, limit {LONGEST_SLUG}")
    return tuple(labels)


def medmnist_labels(flag: str) -> tuple[str, ...]:
    """Returns the labels of a 2D MedMNIST set, in the order of their indices.

    Raises:
        ValueError: for an unknown set, a set of volumes or a multi-label set.
    """
    if flag == "pathmnist":
        # avoids importing medmnist, which takes seconds
        return PATHMNIST
    from medmnist import INFO

    problem = _find_problem(INFO[flag]) if flag in INFO else "not a MedMNIST set"
    if problem:
        usable = [name for name, info in INFO.items() if not _find_problem(info)]
        raise ValueError(f"{problem}; allowed: {', '.join(usable)}, or a list of labels")
    return tuple(INFO[flag]["label"][str(number)] for number in range(len(INFO[flag]["label"])))


def _find_problem(info: dict) -> str | None:
    """Returns why a MedMNIST set cannot be used, or None."""
    if info["python_class"].endswith("3D"):
        return "a set of volumes, but the base model generates flat images"
    if info["task"].startswith("multi-label"):
        return "a multi-label set, but a prompt names exactly one label"
    return None
